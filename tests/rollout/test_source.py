"""`SyncSource` in a real run: how often prompts occur in an iteration, and how many rounds are sampled."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_fit import Recorder, fit
from two_ranks import in_two_ranks

from lit_rlvr.algorithms import DAPO
from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.rollout.callback import rollout_of
from lit_rlvr.rollout.source import RolloutSource
from lit_rlvr.rollout.sync import SyncSource


def sampled(folder: Path, root: Path, answers: list[str], **options: Any) -> tuple[RolloutSource, Recorder]:
    """Train DAPO on two prompts in the order given, whose groups are mixed where the answer is yes."""
    rows = [{"id": f"p{k}", "prompt": f"{k}?", "answer": answer} for k, answer in enumerate(answers)]
    data = PromptDataModule(rows, order="given", prompts_per_rollout=2)
    module, seen = fit(
        folder, root, data=data, algorithm=DAPO, rewards=["tiny_rewards.even_if_yes"], group_size=8, **options
    )
    return rollout_of(module.trainer).source, seen


@pytest.mark.parametrize(
    ("answers", "limit", "rounds", "kept"),
    [
        (["yes", "yes", "yes"], 10, 1, {0: 0, 1: 1}),
        (["no", "yes", "no", "yes", "yes", "yes"], 10, 2, {1: 0, 3: 1}),
        (["no", "no", "no", "yes", "yes", "yes"], 10, 3, {3: 0, 4: 1}),  # the third mixed group is one too many
        (["no", "yes", "no", "no", "yes", "yes"], 2, 2, {1: 0}),
        (["no", "no", "no"], 3, 3, {}),
    ],
)
def test_rounds_are_sampled_until_the_groups_are_there(
    tiny_model_folder: Path,
    tmp_path: Path,
    answers: list[str],
    limit: int,
    rounds: int,
    kept: dict[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared: list[dict[str, int]] = []
    monkeypatch.setattr(PromptDataModule, "prepare_ahead", lambda self, cursor: prepared.append(cursor))
    source, seen = sampled(tiny_model_folder, tmp_path, answers, max_sampling_rounds=limit)
    (rollout,), (metrics,) = seen.rollouts, seen.metrics
    assert [p.sample.id for p in rollout.prompts] == [f"p{k % len(answers)}" for k in range(2 * rounds)]
    mixed = sum(p.sample.answer == "yes" for p in rollout.prompts)
    assert (metrics["rollout/sampling_rounds"], metrics["rollout/live_groups"]) == (rounds, mixed)
    assert metrics["rollout/judged_prompts"] == 2 * rounds, "statistics are those of all sampled groups"
    assert rollout.kept == kept and seen.minibatches == [[*kept]]
    assert rollout.repeats == [k // len(answers) for k in range(2 * rounds)]
    assert source.data.cursor == source.data.stream.take(2 * rounds, {"epoch": 0, "position": 0})[1]
    assert prepared == [source.data.cursor], "images of the next batch, not of one that dynamic sampling has taken"


def _rank_counts_repeats(rank: int, source: SyncSource) -> None:
    """Ten prompts of an iteration over three samples: five rounds of one prompt a rank, across epochs."""
    cursor, seen = source.data.cursor, Counter[str]()
    for rounds in range(1, 6):
        prompts, cursor = source.data.stream.take(2, cursor)
        for r, prompt in enumerate(prompts):
            if r == rank:
                assert source.count_repeats_in_round(rounds) == [seen[prompt.sample.id]]
            seen[prompt.sample.id] += 1
    assert max(seen.values()) >= 3


def test_repeats_count_earlier_rounds_and_lower_ranks(tiny_model_folder: Path, tmp_path: Path) -> None:
    source, _ = sampled(tiny_model_folder, tmp_path, ["yes"] * 3)
    in_two_ranks(tmp_path, _rank_counts_repeats, source)
