"""The noise scale of the gradient, against a slow loop over the gradients of single prompts."""

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_fit import fit, naive_gradients
from torch import Tensor

from lit_rlvr.training import noise_scale
from lit_rlvr.training.noise_scale import NoiseScale, StepNoise, step_noise

ONE_GROUP = {"tokens_per_microbatch": 110}
"""Options with which each micro-batch has one group of the tiny runs."""


def by_hand(gradients: Sequence[Tensor]) -> StepNoise:
    """The unbiased estimates from each prompt's own gradient (D,), whose mean is the step's."""
    count = len(gradients)
    mean = sum(gradients, torch.zeros_like(gradients[0])) / count
    noise = sum(float((gradient - mean).square().sum()) for gradient in gradients) / (count - 1)
    return StepNoise(float(mean.square().sum()) - noise / count, noise, count)


def estimate(parts: Sequence[Sequence[int]], gradients: Sequence[Tensor], group_size: int = 1) -> StepNoise | None:
    """Return `step_noise` of a step whose micro-batches have the given rows; a row's share of the loss is equal."""
    rows = len(gradients)
    sums = [sum((gradients[i] for i in part), torch.zeros_like(gradients[0])) / rows for part in parts]
    squares = sum((total.square().sum() for total in sums), torch.zeros(()))
    plan: Any = SimpleNamespace(
        prepared=SimpleNamespace(rollout=SimpleNamespace(group_size=group_size)),
        microbatches=parts,
        num_counted=len(parts),
    )
    return step_noise(plan, rows // group_size, squares, float(sum(sums, torch.zeros(())).norm()))


def as_pair(noise: StepNoise | None) -> list[float]:
    assert noise is not None
    return [noise.signal, noise.noise]


def test_a_run_measures_what_single_prompts_have(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Prompts without a signal count too, with the gradient 0."""
    module, seen = fit(tiny_model_folder, tmp_path, compute=ONE_GROUP, prompts_per_rollout=12)
    gradients = [naive_gradients(seen.rollouts[0], [p])[1] for p in range(12)]
    flat = [torch.cat([g.flatten() for g in gradient.values()]) for gradient in gradients]
    assert 1 < sum(bool(gradient.any()) for gradient in flat) < 12
    wanted = by_hand(flat)
    assert [module.noise_scale.signal, module.noise_scale.noise] == pytest.approx(as_pair(wanted), rel=1e-4)


def test_any_cut_is_right_in_expectation() -> None:
    """Over all orders of five prompts, of which one has no signal, in micro-batches of different sizes."""
    torch.manual_seed(0)
    gradients = [*(torch.randn(4, 3, dtype=torch.float64) + 0.5), torch.zeros(3, dtype=torch.float64)]
    wanted = as_pair(by_hand(gradients))
    for sizes in ([1, 1, 1, 1], [1, 3], [2, 2], [2, 1, 1]):
        found = []
        for order in permutations(range(4)):
            ends = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
            parts = [order[ends[k] : ends[k + 1]] for k in range(len(sizes))]
            found.append(as_pair(estimate(parts, gradients)))
        means = [fmean(values) for values in zip(*found, strict=True)]
        assert means == pytest.approx(wanted), sizes


def test_a_prompt_in_several_micro_batches_is_one_prompt() -> None:
    """Three groups of two completions with equal gradients; the last one is cut, and its halves count as two prompts'
    do: 2 x (1 x 1.5 + 1 x 0.5 + 1.5 x 0.5) = 5.5 pairs between micro-batches in place of 6."""
    torch.manual_seed(0)
    one, two, three = torch.randn(3, 50, dtype=torch.float64) + 0.5
    rows = [one, one, two, two, three, three]
    whole = estimate([[0, 1], [2, 3], [4, 5]], rows, group_size=2)
    assert as_pair(whole) == pytest.approx(as_pair(by_hand([one, two, three])))
    cut = estimate([[0, 1], [2, 3, 4], [5]], rows, group_size=2)
    products = 2 * (one @ (two + three / 2) + one @ three / 2 + (two + three / 2) @ three / 2)
    assert as_pair(cut)[0] == pytest.approx(float(products) / 5.5)


def test_one_micro_batch_measures_nothing(tiny_model_folder: Path, tmp_path: Path) -> None:
    _, seen = fit(tiny_model_folder, tmp_path, steps=2)
    assert "train/noise_scale" not in seen.metrics[1]
    assert estimate([[0, 1, 2]], [torch.ones(2)] * 3) is None


def test_measuring_changes_no_number(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, measured = fit(tiny_model_folder, tmp_path, steps=3, compute=ONE_GROUP)
    assert measured.metrics[2]["train/noise_scale"] > 0
    monkeypatch.setattr(noise_scale, "whole_parameters", lambda model: [])
    _, unmeasured = fit(tiny_model_folder, tmp_path, steps=3, compute=ONE_GROUP)
    for gradients, others in zip(measured.gradients, unmeasured.gradients, strict=True):
        assert all(torch.equal(gradients[name], others[name]) for name in others)


def test_averages_are_of_signal_and_noise_apart() -> None:
    scale = NoiseScale()
    assert scale.add(StepNoise(0.2, 5.0, 6)) == {}, "one step has no standard error"
    metrics = scale.add(StepNoise(0.4, 7.0, 4))
    ratio = (5 * 0.95 + 7) / (0.2 * 0.95 + 0.4)
    assert metrics == {"train/noise_scale": pytest.approx(ratio), "train/step_prompts": 4}
    assert scale.add(None) == {}
    resumed = NoiseScale()
    resumed.load_state_dict(scale.state_dict())
    assert resumed.add(StepNoise(0.3, 6.0, 6)) == scale.add(StepNoise(0.3, 6.0, 6))


def test_a_signal_within_its_error_is_a_bound() -> None:
    scale = NoiseScale()
    scale.add(StepNoise(1.0, 4.0, 6))
    value = scale.add(StepNoise(-1.0, 4.0, 6))["train/noise_scale"]
    assert value == pytest.approx(4.0, rel=0.01), "the standard error of two values 1 and -1 is 1"
