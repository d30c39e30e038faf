"""Groups change places so that processes train on about as many tokens."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, strategies as st
from tiny import make_rollout, random_ids
from tiny_vlms import picture
from two_ranks import in_two_ranks

from lit_rlvr.algorithms import AAPO, GRPO, GRPOLead, Reinforce
from lit_rlvr.policy.loading import load_image_processor
from lit_rlvr.rollout.assemble import join, take_group
from lit_rlvr.rollout.balance import balance, even_out, without_patches
from lit_rlvr.rollout.summaries import GroupSummary, gather_summaries, group_tokens, trainable_groups
from lit_rlvr.types import RewardResult, Rollout


def rollout_of(lengths: list[list[int]]) -> Rollout:
    made = make_rollout(
        [random_ids(3 + p, p) for p in range(len(lengths))],
        [[random_ids(n, 10 * p + g) for g, n in enumerate(group)] for p, group in enumerate(lengths)],
    )
    made.rewards = torch.arange(float(made.rewards.numel())).reshape(made.rewards.shape)
    return made


def summaries(tokens: list[list[int]], numbers: list[list[int | None]]) -> list[list[GroupSummary]]:
    return [
        [GroupSummary("", count, True, number) for count, number in zip(counts, there, strict=True)]
        for counts, there in zip(tokens, numbers, strict=True)
    ]


def test_groups_stay_in_their_minibatch_and_shown_ones_where_they_are() -> None:
    stay = [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    tokens: list[list[int]] = [[9, 7], [1, 3]]
    assert even_out(summaries(tokens, [[0, 1], [2, 3]]), 4, pinned_groups=0) == stay
    assert even_out(summaries(tokens, [[0, None], [1, None]]), 1, pinned_groups=0)[0][1] == (0, 1), (
        "7 is not trained on"
    )
    assert even_out(summaries(tokens, [[0, 1], [2, 3]]), 1, pinned_groups=2) == stay
    assert even_out(summaries(tokens, [[0, 1], [2, 3]]), 1, pinned_groups=1)[0][0] == (0, 0)


@given(st.data(), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_every_group_has_one_place_and_nothing_gets_less_even(data: Any, ranks: int, groups: int, parts: int) -> None:
    numbers = st.lists(st.integers(0, 50), min_size=groups, max_size=groups)
    tokens = [data.draw(numbers) for _ in range(ranks)]
    part = [[p % parts for p in range(groups)] for _ in range(ranks)]
    places = even_out(summaries(tokens, [[*range(groups)] for _ in range(ranks)]), parts, pinned_groups=1)
    assert Counter(place for there in places for place in there) == Counter(
        (r, p) for r in range(ranks) for p in range(groups)
    )
    assert all(part[r][p] == part[at][q] for at, there in enumerate(places) for q, (r, p) in enumerate(there))
    for k in range(parts):
        before = [sum(n for p, n in enumerate(there) if p % parts == k) for there in tokens]
        after = [sum(tokens[r][p] for q, (r, p) in enumerate(there) if q % parts == k) for there in places]
        assert max(after) <= max(before) and min(after) >= min(before)


def test_a_rollout_is_what_its_groups_make() -> None:
    whole = rollout_of([[4, 2], [1, 6], [3, 3]])
    ages, details = whole.token_ids + 1, [[{"a": RewardResult(float(p + g))} for g in range(2)] for p in range(3)]
    whole = replace(
        whole,
        reference_rewards=whole.rewards + 0.5,
        versions=ages,
        stale_cache=ages > 9,
        repeats=[0, 2, 1],
        parts={"a": whole.rewards - 1},
        details=details,
    )
    again = join(join(take_group(whole, 0), take_group(whole, 1)), take_group(whole, 2))
    for field in fields(Rollout):
        ours, wanted = getattr(again, field.name), getattr(whole, field.name)
        if isinstance(wanted, torch.Tensor | dict):
            torch.testing.assert_close(ours, wanted, rtol=0, atol=0)
        else:
            assert ours == wanted, field.name
    assert take_group(whole, 1).token_ids.untyped_storage().nbytes() == 2 * 6 * 8, "a view would be sent whole"


def test_groups_that_training_will_run() -> None:
    """By the algorithm's own rule: equal rewards are no gradient for GRPO, but for REINFORCE and AAPO's margin."""
    rollout = rollout_of([[4, 2], [1, 6], [2, 2]])
    rollout.rewards[0] = 1.0
    rollout.mask[4:] = False
    assert [group_tokens(rollout, p) for p in range(2)] == [3 + 6, 4 + 7]
    assert (
        trainable_groups(GRPO(), rollout) == trainable_groups(AAPO(advantage="agrae"), rollout) == [False, True, False]
    )
    for algorithm in (GRPO(kl={"coef": 0.1}), GRPO(loss={"entropy_coef": 0.1}), Reinforce(), AAPO(), GRPOLead()):
        assert trainable_groups(algorithm, rollout) == [True, True, False], type(algorithm).__name__


def _rank_exchanges(rank: int, folder: Path) -> None:
    """Groups with images go both ways."""
    processor = load_image_processor(str(folder))
    pixels = processor.pixels([picture(56, 84, seed=1)])
    rollout = rollout_of([[40, 2], [30, 6]] if rank == 0 else [[1, 2], [1, 1]])
    rollout.prompts = [replace(prompt, pixels=pixels) for prompt in rollout.prompts]
    rollout.completions[1][1] = replace(rollout.completions[1][1], pixels=pixels)
    before = {id(part.pixels.inputs[0]["pixel_values"]) for part in rollout.prompts if part.pixels}
    moved = balance(rollout, gather_summaries(rollout, [True] * 2), 1, 0, processor.cut)
    found = [part.pixels for part in (*moved.prompts, *(c for row in moved.completions for c in row)) if part.pixels]
    assert len(found) == 3 and any(id(pixel.inputs[0]["pixel_values"]) not in before for pixel in found)
    (wanted,) = pixels.inputs
    for pixel in found:
        (inputs,) = pixel.inputs
        assert all(torch.equal(inputs[name], wanted[name]) for name in wanted) and inputs.keys() == wanted.keys()
    light = without_patches(take_group(rollout, 0))
    assert len(pickle.dumps(light)) + wanted["pixel_values"].nbytes / 2 < len(pickle.dumps(take_group(rollout, 0)))


def test_patches_of_images_are_made_again_instead_of_sent(vlm_folder: Path, tmp_path: Path) -> None:
    in_two_ranks(tmp_path, _rank_exchanges, vlm_folder)


def test_one_process_keeps_its_rollout() -> None:
    rollout = rollout_of([[4, 2]])
    assert balance(rollout, gather_summaries(rollout, [True]), 1, 0) is rollout
