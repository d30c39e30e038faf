"""Staleness metrics, and the measured divergence of a step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_engines import Copying
from tiny_fit import MixedVersions, fit
from two_ranks import in_two_ranks

from lit_rlvr.training.metrics import staleness_metrics

NAMES = {f"train/staleness/{name}" for name in ("mean", "max", "ess")}


def test_staleness_is_logged_from_the_first_old_token_on(tiny_model_folder: Path, tmp_path: Path) -> None:
    recorder = MixedVersions(iterations=(1,))
    _, seen = fit(tiny_model_folder, tmp_path, steps=6, engine=Copying(), recorder=recorder, updates_per_rollout=2)
    first, mixed, fresh = seen.metrics
    assert not NAMES & first.keys() and mixed.keys() >= NAMES
    rollout = seen.rollouts[1]
    assert rollout.advantages is not None
    ages = [
        float(age)
        for i, row in enumerate(recorder.ages[1])
        for age, used in zip(row, rollout.mask[i], strict=True)
        if used and rollout.advantages.flatten()[i] != 0
    ]
    assert mixed["train/staleness/mean"] == pytest.approx(sum(ages) / len(ages)) and 0 < sum(ages) / len(ages) < 2
    assert mixed["train/staleness/max"] == 2
    assert [fresh[f"train/staleness/{name}"] for name in ("mean", "max")] == [0, 0]
    assert fresh["train/staleness/ess"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("mode", ["token_truncate", "token_reject"])
def test_the_effective_sample_size_is_that_of_the_weights_in_the_loss(
    tiny_model_folder: Path, tmp_path: Path, mode: Any
) -> None:
    recorder = MixedVersions(distance=0.3)
    module, seen = fit(
        tiny_model_folder, tmp_path, engine=Copying(), recorder=recorder, importance={"correction": mode}, lr=0.0
    )
    rollout = seen.rollouts[0]
    assert rollout.advantages is not None
    live = [int(i) for i in (rollout.advantages.flatten() != 0).nonzero()]
    old = module.policy.logprobs(rollout, live)[0].detach()  # a learning rate of 0 left the weights as they were
    ratios = (old - rollout.rollout_logprobs[live]).exp()[rollout.mask[live]].tolist()
    weights = [min(w, 2.0) if mode == "token_truncate" else float(0.5 <= w <= 2.0) for w in ratios]
    size = sum(weights) ** 2 / sum(w * w for w in weights) / len(weights)
    assert seen.metrics[0]["train/staleness/ess"] == pytest.approx(size, rel=1e-4) and size < 0.95
    assert seen.metrics[0]["train/effective_sample_size"] < size - 0.01, "that of the ratios without bounds"
    if mode == "token_reject":
        assert seen.metrics[0]["train/importance_dropped"] == pytest.approx(1 - size, rel=1e-4)


def _rank_ages(rank: int) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [True, True, True]])
    age = torch.tensor([[4, 2, 9], [0, 9, 9], [9, 9, 9], [8, 0, 0]]) * (1 - rank)
    rollout: Any = SimpleNamespace(group_size=2, mask=mask, stale_cache=age > 2)
    live = [0, 1, 3]
    minibatches = [[0], [] if rank else [1]]
    found = staleness_metrics(rollout, age, live, minibatches)
    wanted = {"train/staleness/mean": (4 + 2 + 8) / 2 / 9, "train/staleness/max": 4}
    assert found == pytest.approx(wanted | {"train/staleness/stale_cache": 2 / 9})
    rollout.stale_cache = None
    assert staleness_metrics(rollout, age, live, minibatches) == pytest.approx(wanted)
    some = [0] if rank else []
    assert staleness_metrics(rollout, age, some, [[0], []]) == {"train/staleness/mean": 0, "train/staleness/max": 0}
    assert staleness_metrics(rollout, age, [], [[0], []]) == {}


def test_staleness_is_that_of_all_ranks(tmp_path: Path) -> None:
    in_two_ranks(tmp_path, _rank_ages)
