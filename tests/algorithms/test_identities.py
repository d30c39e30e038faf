"""What the papers prove about their advantages and losses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from slow_loops import Case, random_case

from lit_rlvr.advantages import (
    AGRAE,
    AAPOAdvantage,
    Advantage,
    DrGRPOAdvantage,
    EasyFocused,
    GPGAdvantage,
    GroupBatch,
    GRPOAdvantage,
    HardFocused,
    NegativeDominant,
    PositiveDominant,
)
from lit_rlvr.algorithms import AAPO, APMPO, GMPO, GPG, GRPO, DrGRPO, RLVRModule
from lit_rlvr.commands.check.replay import replay
from lit_rlvr.objectives import LossInputs

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


@pytest.mark.parametrize("size", [2, 5, 8])
def test_equation_5_of_agrae_holds(size: int) -> None:
    found = EXACT(all_rates(size))
    torch.testing.assert_close(found.clamp(min=0).sum(1), -found.clamp(max=0).sum(1))
    assert float(found.abs().sum()) > 0


def test_the_sample_level_of_agrae_shifts_from_easy_to_hard_groups() -> None:
    """Omega 0 is easy-focused, omega 1 hard-focused (gamma = 1/2), in between their mixture (eq. 12)."""
    group = all_rates(8)
    for omega in (0.0, 0.3, 1.0):
        advantage = AGRAE(base=EXACT, group_level=False, omega_scope="ema", ema_decay=0.999999999999)
        advantage.load_state_dict({"base": {}, "omega": omega})
        mixed = omega * HardFocused(base=EXACT)(group) + (1 - omega) * EasyFocused(base=EXACT)(group)
        torch.testing.assert_close(advantage(group), mixed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "advantage", [EXACT, AGRAE(base=EXACT), PositiveDominant(base=EXACT), NegativeDominant(base=EXACT)]
)
def test_theorem_1_of_agrae_holds_in_a_softmax_bandit(advantage: Advantage) -> None:
    """Logit update of behaviour b: sum of the advantages it was sampled with, minus C pi_b, over G."""
    torch.manual_seed(0)
    behaviours, sampled = 12, [0, 3, 4, 7]
    logits = torch.randn(behaviours, dtype=torch.float64, requires_grad=True)
    c = torch.tensor([[1.0, 0, 0, 1]], dtype=torch.float64)
    group = GroupBatch(c, c)
    logp = logits.log_softmax(0)[sampled][:, None]  # one token per completion: (B, 1)
    module = GRPO(advantage=advantage)
    advantages, _ = module.estimate(group)
    weight = torch.full_like(logp, 1 / 4).detach()
    inputs = LossInputs(
        logp=logp, old=logp.detach(), mask=torch.ones(4, 1, dtype=torch.bool), advantages=advantages.T,
        token_weight=weight, row_weight=weight[:, 0], prompt=torch.zeros(4, dtype=torch.long), plain_weight=weight,
        rollout=logp.detach(),
    )  # fmt: skip
    module.loss(inputs)[0].backward()
    expected = -advantages.sum() * logits.detach().softmax(0)
    expected[sampled] += advantages[0]
    torch.testing.assert_close(-4 * logits.grad, expected)
    unsampled = [b for b in range(behaviours) if b not in sampled]
    if advantage is EXACT:  # C = 0: what was not sampled does not move
        assert float(logits.grad[unsampled].abs().max()) < 1e-12
    else:
        assert float(logits.grad[unsampled].abs().max()) > 1e-3


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


def test_apmpo_is_monotone_in_its_power() -> None:
    """Each completion's power mean rises with p, so that the loss falls where A > 0 and rises where A < 0."""
    case = random_case(1)
    losses = []
    for power in (0.0, 1e-6, 0.01, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5):
        terms = []
        for rows in range(case.arrays["rewards"].size):  # one completion at a time: mask all others
            mask = case.arrays["mask"].copy()
            mask[[i for i in range(len(mask)) if i != rows]] = False
            found = replay(case.arrays | {"mask": mask}, {"x": APMPO(schedule={"power": power}, kl={"coef": 0.0})})
            terms.append(found["x/loss"].item())
        losses.append(terms)
    signs = np.sign(replay(case.arrays, {"x": GRPO()})["x/advantages"].flatten())
    for less, more in itertools.pairwise(np.array(losses)):
        assert (signs * (less - more) >= -1e-12 * np.abs(less)).all()
    assert (signs * (np.array(losses[0]) - np.array(losses[-1])) > 0).sum() > 10


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


def expected_gradient(module: RLVRModule, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The expected gradient of a loss over every group that a policy of three answers can draw, and the true
    gradient of the expected reward, by the logits. Answers: right in 1 token, wrong in 1, wrong in 3."""
    logits = torch.tensor([0.2, -0.4, 0.5], dtype=torch.float64, requires_grad=True)
    rewards, lengths, width = torch.tensor([1.0, 0.0, 0.0]).double(), [1, 1, 3], 3
    logp = logits.log_softmax(0)
    (true,) = torch.autograd.grad((logp.exp() * rewards).sum(), logits, retain_graph=True)
    total = torch.zeros(3, dtype=torch.float64)
    for draw in itertools.product(range(3), repeat=size):
        mask = torch.tensor([[t < lengths[b] for t in range(width)] for b in draw])
        first = torch.tensor([[t == 0 for t in range(width)]] * size)
        rows = torch.where(first, logp[list(draw)][:, None], 0.0)  # the first token decides, the others are certain
        c = rewards[list(draw)][None]
        advantages, _ = module.estimate(GroupBatch(c, c))
        share = 1 / size / (width if isinstance(module, DrGRPO) else mask.double().sum(1, keepdim=True))
        weight = mask.double() * share
        inputs = LossInputs(
            logp=rows, old=rows.detach(), mask=mask, advantages=advantages.T, token_weight=weight,
            row_weight=weight[:, 0], prompt=torch.zeros(size, dtype=torch.long), plain_weight=weight,
            rollout=rows.detach(),
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(module.loss(inputs)[0], logits, retain_graph=True)
        total -= logp.detach()[list(draw)].sum().exp() * gradient
    return total.numpy(), true.numpy()


def test_dr_grpo_is_unbiased_where_grpo_is_not() -> None:
    """Dr. GRPO's expected gradient is the true one times a constant, (G - 1)/G over T_max; GRPO's points elsewhere."""
    size = 4
    found, true = expected_gradient(DrGRPO(), size)
    np.testing.assert_allclose(found, true * (size - 1) / size / 3, rtol=1e-10)
    found, true = expected_gradient(GRPO(), size)
    cosine = found @ true / np.linalg.norm(found) / np.linalg.norm(true)
    assert cosine < 0.999
    found, true = expected_gradient(GRPO(advantage=DrGRPOAdvantage()), size)  # the lengths alone bias it
    assert found @ true / np.linalg.norm(found) / np.linalg.norm(true) < 0.999
