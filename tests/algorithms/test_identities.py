"""What the papers prove about their advantages and losses."""

import math

import numpy as np
import pytest
import torch
from slow_loops import Case, random_case

from lit_rlvr.advantages import (
    AAPOAdvantage,
    Advantage,
    EasyFocused,
    GPGAdvantage,
    GroupBatch,
    GRPOAdvantage,
    HardFocused,
    NegativeDominant,
    PositiveDominant,
)
from lit_rlvr.algorithms import AAPO, APMPO, GMPO, GPG, GRPO, RLVRModule
from lit_rlvr.commands.check.replay import replay

EXACT = GRPOAdvantage(eps=0)


def all_rates(size: int) -> GroupBatch:
    """One group for every number of correct completions from 0 to G."""
    c = torch.tensor([[float(g < k) for g in range(size)] for k in range(size + 1)], dtype=torch.float64)
    return GroupBatch(c, c.clone())


@pytest.mark.parametrize("size", [2, 5, 8])
def test_theorem_2_and_table_1_of_agrae_hold(size: int) -> None:
    group = all_rates(size)
    p = group.success[:, 0]
    inner = (p > 0) & (p < 1)
    magnitude: list[tuple[Advantage, torch.Tensor]] = [
        (EXACT, 2 * size * (p * (1 - p)).sqrt()),
        (HardFocused(base=EXACT), size * (1 - p).sqrt()),
        (EasyFocused(base=EXACT), size * p.sqrt()),
        (PositiveDominant(base=EXACT), 11 * size * (p * (1 - p)).sqrt()),
        (NegativeDominant(base=EXACT), 1.1 * size * (p * (1 - p)).sqrt()),
    ]
    for advantage, expected in magnitude:
        found = advantage(group).abs().sum(1)
        torch.testing.assert_close(found, torch.where(inner, expected, 0.0), rtol=1e-12, atol=1e-12)


def results(case: Case, module: RLVRModule) -> tuple[float, np.ndarray]:
    found = replay(case.arrays, {"x": module})
    return found["x/loss"].item(), found["x/dlogp"]


@pytest.mark.parametrize("seed", range(3))
def test_apmpo_at_power_1_is_grpo(seed: int) -> None:
    case = random_case(seed, shaped=True)
    for low, high in ((0.2, 0.2), (0.1, 0.4)):
        fixed = APMPO(schedule={"power": 1.0}, eps_low=low, eps_min=high, eps_max=high, kl={"coef": 0.02})
        loss, gradient = results(case, fixed)
        expected, slope = results(case, GRPO(clip_low=low, clip_high=high, kl={"coef": 0.02}))
        assert loss == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(gradient, slope, rtol=1e-11, atol=0)


@pytest.mark.parametrize("power", [0.0, 1e-10, 1e-7])
def test_apmpo_at_power_0_is_gmpo(power: float) -> None:
    case = random_case(0, shaped=True)
    fixed = APMPO(schedule={"power": power}, eps_low=0.2, eps_min=0.4, eps_max=0.4, kl={"coef": 0.0})
    loss, gradient = results(case, fixed)
    expected, slope = results(case, GMPO(clip_low=-math.log(0.8), clip_high=math.log(1.4)))
    assert loss == pytest.approx(expected, rel=1e-12 + 1e4 * power)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9 + 1e4 * power)


def test_with_one_update_grpo_gmpo_and_apmpo_have_the_same_gradient() -> None:
    case = random_case(2, shaped=True, on_policy=True)
    expected = results(case, GRPO())[1]
    for module in (GMPO(), APMPO(kl={"coef": 0.0}), APMPO(kl={"coef": 0.0}, schedule={"statistics": "group"})):
        np.testing.assert_allclose(results(case, module)[1], expected, rtol=1e-11)


@pytest.mark.parametrize("aggregation", ["group_token_mean", "token_mean", "sequence_mean"])
def test_aapo_without_margin_is_gpg(aggregation: str) -> None:
    case = random_case(3, shaped=True)
    none = AAPOAdvantage(delta_low=0.0, delta_high=0.0)
    gpg = GPG(advantage=GPGAdvantage(f_norm="std", rescale_valid=False), loss={"aggregation": aggregation})
    one, other = (results(case, m) for m in (AAPO(advantage=none, loss={"aggregation": aggregation}), gpg))
    assert one[0] == pytest.approx(other[0], rel=1e-12)
    np.testing.assert_array_equal(one[1], other[1])
