"""Which tokens of a step a threshold chooses: as many as the rule says, whatever the largest value is, and ties by
chance."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_rlvr.algorithms import GRPO, M2PO, ClipCov, KLCov
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import StepTokens, covariances, largest

N = 4000


def step(seed: int = 0, count: int = N) -> StepTokens:
    """Tokens of a step, which differ from each other."""
    random = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(count, generator=random, dtype=torch.float64)

    old = -normal().abs()
    return StepTokens(old, old + 0.25 * normal(), normal().abs(), normal(), normal().abs().frac())


def moments(tokens: StepTokens) -> Tensor:
    return (tokens.old - tokens.rollout).square()


@pytest.mark.parametrize("outlier", [1.0, 100.0, 1e6])
def test_one_outlier_does_not_widen_a_choice(outlier: float) -> None:
    values = step().entropy
    values[7] = outlier
    for count in (1, 2, 17, 400, N):
        chosen = largest(values, count, step().chance)
        assert set(chosen.nonzero().flatten().tolist()) == set(values.argsort(descending=True)[:count].tolist())
        assert chosen.equal(largest(values, count)), "without ties the chance plays no part"


@pytest.mark.parametrize("outlier", [0.0, 3.0, 100.0])
def test_m2po_keeps_its_bound_and_as_many_tokens_as_it_takes(outlier: float) -> None:
    tokens = step()
    tokens.rollout[11] = tokens.old[11] - outlier
    kept = M2PO(threshold=0.04).select(tokens)
    means = moments(tokens).sort().values.cumsum(0) / torch.arange(1, N + 1)
    assert moments(tokens)[kept].mean() < 0.04 and int(kept.sum()) == int((means < 0.04).sum()) < N
    assert moments(tokens)[kept].max() < moments(tokens)[~kept].min()


@pytest.mark.parametrize("advantage", [0.0, 0.1, -0.3])
@pytest.mark.parametrize(("share", "count"), [(2e-4, 1), (2e-3, 8), (0.3, 1200)])
def test_kl_cov_penalises_as_many_tokens_of_equal_rewards_as_of_others(
    advantage: float, share: float, count: int
) -> None:
    """`max(1, int(share N))`, as in verl and SkyRL; the covariances of equal advantages are all 0."""
    equal = replace(step(), advantages=torch.full((N,), advantage, dtype=torch.float64))
    assert not covariances(equal).any()
    for tokens in (equal, step()):
        assert int(KLCov(penalty_share=share).select(tokens).sum()) == count


@pytest.mark.parametrize(("share", "count", "wanted"), [(0.3, 56, 17), (0.2, 55, 11), (0.07, 100, 7), (0.001, 56, 1)])
def test_the_tokens_of_the_highest_entropy_are_as_many_as_the_rule_says(share: float, count: int, wanted: int) -> None:
    """Also where the completions of a prompt begin alike, so that several tokens have the entropy of the threshold."""
    for alike in (1, 4, count):
        tokens = step(count=count)
        tokens.entropy = tokens.entropy[torch.arange(count) // alike * alike] * (1 + 1e-7 * tokens.advantages)
        chosen, _ = GRPO(loss={"top_entropy_quantile": share}).select_tokens(tokens)
        assert int(chosen.sum()) == wanted == max(1, math.ceil(round(share * count, 6)))
        assert tokens.entropy[chosen].min() >= tokens.entropy[~chosen].max() * (1 - 1e-5)


def test_clip_cov_silences_as_many_tokens_as_the_rule_says() -> None:
    """Also if their log-probabilities are alike, as those of certain tokens are."""
    tokens = replace(step(), old=torch.zeros(N, dtype=torch.float64) - 1e-5 * torch.arange(N), chance=None)
    module = ClipCov(clip_share=0.01, covariance_low=-9.0, covariance_high=9.0)
    assert int(module.select(tokens).sum()) == 40
    few = ClipCov(clip_share=0.5, covariance_low=1.0, covariance_high=5.0).select(step())
    between = (covariances(step()) > 1) & (covariances(step()) < 5)
    assert few.equal(between), "no token outside the bounds"


def test_the_order_of_tokens_decides_no_tie() -> None:
    tokens = replace(step(), advantages=torch.zeros(N, dtype=torch.float64), entropy=torch.ones(N).double())
    moved = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    other = StepTokens(*(values[moved] for values in vars(tokens).values()))
    kl_cov, grpo = KLCov(penalty_share=0.1), GRPO(loss={"top_entropy_quantile": 0.3})
    assert kl_cov.select(other).equal(kl_cov.select(tokens)[moved])
    assert grpo.select_tokens(other)[0].equal(grpo.select_tokens(tokens)[0][moved])


def test_bounds_between_which_nothing_lies_are_refused() -> None:
    with pytest.raises(UserError, match=r"covariance_low: 2\.0 must lie below covariance_high=2.0"):
        ClipCov(covariance_low=2.0, covariance_high=2.0)
