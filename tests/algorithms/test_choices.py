"""Which tokens of a step a threshold chooses: as many as the rule says, whatever the largest value is, and ties by
chance."""

import math

import pytest
import torch
from torch import Tensor

from lit_rlvr.algorithms import GRPO, M2PO
from lit_rlvr.objectives import StepTokens

N = 4000


def step(seed: int = 0, count: int = N) -> StepTokens:
    """Tokens of a step, which differ from each other."""
    random = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(count, generator=random, dtype=torch.float64)

    old = -normal().abs()
    return StepTokens(old, old + 0.25 * normal(), normal().abs(), normal(), normal().abs().frac())


def moments(tokens: StepTokens) -> Tensor:
    return (tokens.old_logp - tokens.rollout_logp).square()


@pytest.mark.parametrize("outlier", [0.0, 3.0, 100.0])
def test_m2po_keeps_its_bound_and_as_many_tokens_as_it_takes(outlier: float) -> None:
    tokens = step()
    tokens.rollout_logp[11] = tokens.old_logp[11] - outlier
    kept = M2PO(threshold=0.04).select(tokens)
    means = moments(tokens).sort().values.cumsum(0) / torch.arange(1, N + 1)
    assert moments(tokens)[kept].mean() < 0.04 and int(kept.sum()) == int((means < 0.04).sum()) < N
    assert moments(tokens)[kept].max() < moments(tokens)[~kept].min()


@pytest.mark.parametrize(("share", "count", "wanted"), [(0.3, 56, 17), (0.2, 55, 11), (0.07, 100, 7), (0.001, 56, 1)])
def test_the_tokens_of_the_highest_entropy_are_as_many_as_the_rule_says(share: float, count: int, wanted: int) -> None:
    """Also where the completions of a prompt begin alike, so that several tokens have the entropy of the threshold."""
    for alike in (1, 4, count):
        tokens = step(count=count)
        tokens.entropy = tokens.entropy[torch.arange(count) // alike * alike] * (1 + 1e-7 * tokens.advantages)
        chosen, _ = GRPO(loss={"top_entropy_quantile": share}).select_tokens(tokens)
        assert int(chosen.sum()) == wanted == max(1, math.ceil(round(share * count, 6)))
        assert tokens.entropy[chosen].min() >= tokens.entropy[~chosen].max() * (1 - 1e-5)
