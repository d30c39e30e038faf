"""A record keeps every number that training reads, each rank's and each version's, and ends cleanly."""

import logging
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import byte_tokenizer, make_rollout
from torch import nn
from two_ranks import in_two_ranks

from lit_rlvr.advantages import ReferenceCompletions
from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.plan import RunPlan
from lit_rlvr.rollout.record import Record, ReplaySource, first_weights, unpack_rollout
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Prompt, PromptBatch, Rollout

CURSOR = {"epoch": 1, "position": 3}


def odd_rollout() -> Rollout:
    """Two groups of two, wider than their completions, with all that only some rollouts have."""
    texts = [["abcd", "e"], ["", "fg"]]
    groups = [[[ord(letter) for letter in text] for text in group] for group in texts]
    rollout = make_rollout([[1, 2], [3]], groups, [[0.1, 0.2], [1 / 3, -1e-30]])
    token_ids, versions = torch.zeros(2, 4, 6, dtype=torch.long)
    mask, logprobs = torch.zeros(4, 6, dtype=torch.bool), torch.zeros(4, 6)
    for i, ids in enumerate(ids for group in groups for ids in group):
        token_ids[i, : len(ids)], mask[i, : len(ids)] = torch.tensor(ids, dtype=torch.long), i != 1
        logprobs[i, : len(ids)] = -torch.rand(len(ids)) / 3
        versions[i, : len(ids)] = torch.arange(len(ids))
    mask[0, 1] = False  # observed
    completions = [
        [
            replace(
                completion,
                text=texts[p][g],
                logprobs=tuple(logprobs[2 * p + g, : completion.length].tolist()),
                finish_reason="length" if g else "stop",
                sampled=(True, False, True, True) if (p, g) == (0, 0) else (),
                routes=torch.randint(200, (len(rollout.prompts[p].token_ids) + completion.length - 1, 2, 3)).byte(),
            )
            for g, completion in enumerate(group)
        ]
        for p, group in enumerate(rollout.completions)
    ]
    return replace(
        rollout,
        completions=completions,
        token_ids=token_ids,
        mask=mask,
        rollout_logprobs=logprobs,
        versions=versions,
        stale_cache=versions > 1,
        statuses=[["ok", "error"], ["timeout", "unjudged"]],
        has_correct=torch.tensor([[True, False], [True, False]]),
        parts={"a/b": torch.tensor([[1.0, math.nan], [0.5, 0.25]])},
        weights={"a/b": 0.1},
        exact=True,
        reference_rewards=torch.tensor([[math.nan, 1.0], [0.0, 0.7]]),
        kept={1: 5},
        repeats=[0, 2],
    )


def assert_equal(ours: Rollout, theirs: Rollout) -> None:
    for field in fields(Rollout):
        got, wanted = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True, msg=field.name)
        elif field.name == "parts":
            assert got.keys() == wanted.keys()
            for name in wanted:
                torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=0, equal_nan=True)
        else:
            assert got == wanted, field.name
    routes = [[c.routes for group in rollout.completions for c in group] for rollout in (ours, theirs)]
    for one, other in zip(*routes, strict=True):
        assert one is other is None or (one.equal(other) and one.dtype == torch.uint8)


@pytest.mark.parametrize("rollout", [odd_rollout(), make_rollout([[1]], [[[65], [66]]], [[0.0, 1.0]])])
def test_a_rollout_is_read_as_it_was(rollout: Rollout, tmp_path: Path) -> None:
    record = Record(tmp_path, limit=1 << 20)
    record.begin(0, {}, nn.Linear(2, 2))
    texts = [[replace(c, text=byte_tokenizer().decode(c.token_ids)) for c in group] for group in rollout.completions]
    rollout = replace(rollout, completions=texts)
    record.add(1, rollout, CURSOR, updates=7)
    about, arrays = Record(tmp_path).read(1)
    assert (about["cursor"], about["updates"], len(record)) == (CURSOR, 7, 1)
    assert_equal(unpack_rollout(about, arrays, rollout.prompts, rollout.sampling, byte_tokenizer()), rollout)
    assert sum(tensor.numel() for tensor in arrays.values()) < 2000, "padding is not written"


def test_a_resumed_run_replaces_later_iterations_and_keeps_the_bound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rollout, model = make_rollout([[1]], [[[65], [66]]]), nn.Linear(2, 2)

    def files() -> list[str]:
        return sorted(path.name for path in (tmp_path / "record").glob("*.npz"))

    def go_on(after: int, until: int, limit: int = 1 << 20, settings: dict[str, Any] | None = None) -> Record:
        record = Record(tmp_path, limit)
        record.begin(after, settings or {"rollout.group_size": 2}, model)
        for iteration in range(after + 1, until + 1):
            record.add(iteration, rollout, CURSOR, 0)
        return record

    assert len(go_on(0, 5)) == 5
    size = (tmp_path / "record" / files()[0]).stat().st_size
    assert len(go_on(2, 3)) == 3 and len(files()) == 3
    with caplog.at_level(logging.WARNING, "lit_rlvr"):
        assert len(go_on(3, 9, limit=5 * size)) == 5, "what is there counts"
        assert len(go_on(7, 9)) == 5, "there is a gap"
        assert len(go_on(2, 9, settings={"rollout.group_size": 3})) == 2, "its rollouts would be others"
    said = [message.getMessage().partition(" ends before iteration ")[2] for message in caplog.records]
    assert said == [
        "6: its disk space is used up (rollout.replay.record)",
        "8: earlier iterations are not there, or had other settings",
        "3: earlier iterations are not there, or had other settings",
    ]


def _rank_records(rank: int, run: Path) -> None:
    """Rank 1's rollouts are longer, and do not fit into its half of the bound."""
    record = Record(run, limit=12_000)
    record.begin(0, {}, nn.Linear(2, 2))
    for iteration in (1, 2):
        tokens = [65] * (1 if rank == 0 or iteration == 1 else 500)
        record.add(iteration, make_rollout([[1]], [[tokens, [66]]]), CURSOR, 0)
    assert len(Record(run)) == 1


def test_the_record_ends_on_all_ranks_at_once(tmp_path: Path) -> None:
    in_two_ranks(tmp_path, _rank_records, tmp_path)
    names = sorted(path.name for path in (tmp_path / "record").iterdir())
    assert names == ["iteration-000001-rank-0.npz", "iteration-000001-rank-1.npz", "run.json"]


def replay_of(run: Path, prompts: Sequence[Prompt], wanted: ReferenceCompletions | None = None) -> ReplaySource:
    module: Any = SimpleNamespace(reference_completions=wanted, plan=RunPlan())
    data: Any = SimpleNamespace(prompts={"train": prompts})
    return ReplaySource(Record(run), module, data, Sampling(), mask_truncated=False)


def test_a_replay_masks_the_padding_of_another_rank_too(tmp_path: Path) -> None:
    """After an exchange of groups, a rank's tensors may be wider than its own longest completion."""
    rollout = odd_rollout()
    record = Record(tmp_path, limit=1 << 20)
    record.begin(0, {}, nn.Linear(2, 2))
    record.add(1, rollout, CURSOR, updates=7)
    source = replay_of(tmp_path, rollout.prompts)
    source.module.__dict__.update(
        iteration=0,
        updates=9,
        tokenizer=byte_tokenizer(),
        policy=SimpleNamespace(placeholder_ids=()),
        teachers=SimpleNamespace(options=None),
    )
    replayed = source.next(PromptBatch(prompts=rollout.prompts))
    expected = rollout.mask.clone()
    expected[3] = False  # no reward judged it
    assert torch.equal(replayed.mask, expected) and torch.equal(replayed.versions, rollout.versions + 2)


def test_what_cannot_be_replayed_is_one_line(tmp_path: Path) -> None:
    rollout, settings = make_rollout([[1, 2]], [[[65], [66]]]), {"rollout.group_size": 2}
    run, prompt = tmp_path / "run", rollout.prompts[0]
    record = Record(run, limit=1 << 20)
    for words in (
        "run holds no record of a run; record one with rollout.replay.record",
        "run has recorded no iteration",
    ):
        with pytest.raises(UserError, match=words):
            replay_of(run, [prompt]).check(settings, prompts_grow=False)
        record.begin(0, settings, nn.Linear(2, 2))
    record.add(1, rollout, CURSOR, 0)
    replay_of(run, [prompt]).check(settings, prompts_grow=False)
    for prompts, given, words in (
        ([prompt], {"rollout.group_size": 4}, r"recorded with rollout\.group_size 2, this run has 4; use the same"),
        ([prompt], {"data.size": None}, r"run\.json lacks data\.size, .*; rename its former key there, or record"),
        ([], settings, "was trained on p0, which is not in the data"),
        ([replace(prompt, token_ids=[1])], settings, "was trained on p0 with other tokens than in the data"),
    ):
        with pytest.raises(UserError, match=words):
            replay_of(run, prompts).check(given, prompts_grow=False)
    replay_of(run, [replace(prompt, token_ids=[1])]).check(settings, prompts_grow=True)
    with pytest.raises(UserError, match=r"no rewards of a reference, which model\.advantage needs"):
        replay_of(run, [prompt], wanted=ReferenceCompletions()).check(settings, prompts_grow=False)
    with pytest.raises(UserError, match="was recorded with first weights"):
        Record(run).check(first_weights(nn.Linear(2, 2)))
    file = run / "record" / "iteration-000001-rank-0.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"run is damaged: iteration-000001-rank-0\.npz"):
        replay_of(run, [prompt]).check(settings, prompts_grow=False)
    for text in ("{", "", "null"):
        (run / "record" / "run.json").write_text(text)
        with pytest.raises(UserError, match=r"run has a damaged record/run\.json; restore it, or record the run again"):
            replay_of(run, [prompt]).check(settings, prompts_grow=False)


def test_images_that_an_environment_shows_end_the_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rollout = make_rollout([[1]], [[[65], [66]]])
    shown = Pixels(({},), ((65,),), (None,))
    for changed in (
        replace(rollout, completions=[[replace(c, pixels=shown) for c in rollout.completions[0]]]),
        replace(rollout, prompts=[replace(rollout.prompts[0], pixels=shown)]),
    ):
        record = Record(tmp_path, limit=1 << 20)
        record.begin(0, {}, nn.Linear(2, 2))
        record.add(1, rollout, CURSOR, 0)
        with caplog.at_level(logging.WARNING, "lit_rlvr"):
            record.add(2, changed, CURSOR, 1)
            record.add(3, rollout, CURSOR, 2)
        assert "ends before iteration 2: images that an environment or agent shows are not recorded" in caplog.text
        assert len(record) == 1
        caplog.clear()
