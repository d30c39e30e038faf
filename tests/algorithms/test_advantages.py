"""Every advantage against slow loops; names, nesting, state and errors."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from slow_loops import SLOW, random_case, worst_error

import lit_rlvr.advantages as A
from lit_rlvr.advantages import (
    AGRAE,
    REGISTRY,
    AAPOAdvantage,
    Advantage,
    DrGRPOAdvantage,
    GPGAdvantage,
    GroupBatch,
    GRPOAdvantage,
    GRPOLeadAdvantage,
    HardFocused,
    MaxRLAdvantage,
    PassAtKAdvantage,
    PositiveDominant,
    ReferenceCompletions,
    ReinforceAdvantage,
    RLOOAdvantage,
    resolve_advantage,
)
from lit_rlvr.advantages.base import impute
from lit_rlvr.algorithms import GRPO
from lit_rlvr.algorithms.apmpo_schedule import reward_statistics
from lit_rlvr.errors import UserError

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "grpo": [
        {},
        {"eps": 1e-4, "unbiased_std": True},
        {"eps": 1e-4, "unbiased_std": True, "scale": "batch"},
        {"scale": "none"},
    ],
    "gdpo": [{}, {"eps": 1e-2, "unbiased_std": False}],
    "dr_grpo": [{}],
    "gpg": [{}, {"f_norm": "std"}, {"rescale_valid": False}, {"f_norm": "std", "rescale_valid": False}],
    "rloo": [{}],
    "maxrl": [{}],
    "opo": [{}],
    "none": [{}],
    "reinforce_pp": [{}, {"group_baseline": True}],
    "pass_at_k": [{}, {"k": 1}, {"k": 4}],
    "grpo_passk": [{}, {"scale": "group"}],
    "reinforce": [
        {},
        {"positive_weight": 1.0, "negative_weight": 0.0},
        {"positive_weight": 0.0, "negative_weight": 1.0},
    ],
    "aapo": [
        {},
        {"base": "dr_grpo", "margin": "group_mean"},
        {"clip": False},
        {"delta_low": -0.5, "delta_high": 0.1, "base": "gpg"},
        {"base": "reinforce"},
        {"base": "rloo"},
    ],
    "agrae": [
        {},
        {"base": "dr_grpo", "alpha": 0.5},
        {"sample_level": False},
        {"group_level": False},
        {"omega_from": "reward", "p_from": "reward"},
        {"omega_floor": 0.9, "alpha": 0.95},
        {"omega_floor": 0.7, "alpha": 0.4, "base": "rloo"},
    ],
    "positive_dominant": [{}, {"base": "dr_grpo"}, {"base": "rloo"}],
    "negative_dominant": [{}, {"base": "gpg"}, {"base": "rloo"}],
    "hard_focused": [{}, {"base": "rloo"}, {"base": "opo"}],
    "easy_focused": [{}, {"base": "dr_grpo"}, {"base": "rloo"}, {"base": "reinforce_pp"}],
    "grpo_lead": [
        {},
        {"alpha": 0.5, "weight_min": 0.1, "weight_max": 2.0, "slope": 4.0, "center": 0.5},
    ],
    "gigpo": [{}, {"step_weight": 0.5, "scale": "none"}, {"unbiased_std": True, "eps": 1e-4}],
    "step_returns": [{}, {"base": "rloo", "discount": 0.5}, {"base": "reinforce_pp"}],
}


def group_batch(seed: int, shaped: bool, dtype: torch.dtype = torch.float64) -> GroupBatch:
    arrays = random_case(seed, shaped=shaped, size=6).arrays
    lengths = arrays["mask"].sum(1).reshape(arrays["rewards"].shape)
    names = ("rewards", "correct", "reference_rewards")
    return GroupBatch(*(torch.tensor(arrays[n], dtype=dtype) for n in names), torch.tensor(lengths, dtype=dtype))


def slow(name: str, groups: GroupBatch, **options: Any) -> np.ndarray:
    fields: dict[str, Any] = {
        "r": groups.rewards,
        "c": groups.correct,
        "s": groups.reference_rewards,
        "lengths": groups.lengths,
    }
    return np.array(SLOW[name](**{k: v.double().tolist() for k, v in fields.items()}, **options))


def binary(*groups: list[int]) -> GroupBatch:
    c = torch.tensor(groups, dtype=torch.float64)
    return GroupBatch(c, c.clone(), torch.zeros_like(c), torch.arange(1.0, c.numel() + 1).view_as(c))


@pytest.mark.parametrize("shaped", [False, True])
@pytest.mark.parametrize(("name", "options"), [(n, o) for n, all_ in OPTIONS.items() for o in all_])
def test_advantages_are_those_of_the_slow_loops(name: str, options: dict[str, Any], shaped: bool) -> None:
    for seed in range(3):
        group = group_batch(seed, shaped)
        before = {name: t.clone() for name, t in vars(group).items() if t is not None}
        found = REGISTRY[name](**options)(group)
        assert found.dtype == torch.float64
        assert worst_error(found.numpy(), slow(name, group, **options)) < 1e-9
        assert all(torch.equal(t, getattr(group, name)) for name, t in before.items())


@pytest.mark.parametrize("name", OPTIONS)
def test_single_precision_rewards_give_single_precision_advantages(name: str) -> None:
    group = group_batch(0, shaped=True, dtype=torch.float32)
    found = REGISTRY[name]()(group)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, slow(name, group), rtol=2e-4, atol=1e-6)


def test_every_registered_advantage_is_tested_and_is_a_class_of_the_package() -> None:
    assert set(OPTIONS) == set(REGISTRY) == set(SLOW)
    names = "GRPOAdvantage DrGRPOAdvantage GPGAdvantage RLOOAdvantage ReinforceAdvantage AAPOAdvantage AGRAE"
    names += " GDPOAdvantage PositiveDominant NegativeDominant HardFocused EasyFocused GRPOLeadAdvantage"
    names += " MaxRLAdvantage OPOAdvantage ReinforcePPAdvantage PassAtKAdvantage GRPOPassKAdvantage NoAdvantage"
    names += " StepReturns GiGPOAdvantage"
    assert {getattr(A, name) for name in names.split()} == set(REGISTRY.values())


# ---- completions without a reward ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [(n, o) for n, all_ in OPTIONS.items() for o in all_])
def test_completions_without_a_reward_are_left_out(name: str, options: dict[str, Any]) -> None:
    """The others get what they would get in smaller groups; NaN in place of the reward has no effect."""
    group = group_batch(1, shaped=True)
    known = torch.rand(group.rewards.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    known[:, :2], known[3, 2:] = True, False
    fields = {"r": group.rewards, "c": group.correct, "s": group.reference_rewards, "lengths": group.lengths}
    ragged = {k: [row[kept].tolist() for row, kept in zip(v, known, strict=True)] for k, v in fields.items()}
    missing = replace(
        group,
        rewards=impute(group.rewards, ~known),
        correct=impute(group.correct, ~known),
        reference_rewards=group.reference_rewards.where(known, torch.nan),
        has_reward=known,
        has_correct=known,
    )
    found = REGISTRY[name](**options)(missing)
    expected = np.array([value for row in SLOW[name](**ragged, **options) for value in row])
    np.testing.assert_allclose(found[known], expected, rtol=1e-9, atol=1e-12)
    assert (found[~known] == 0).all()


nan = math.nan
REWARDS = torch.tensor([[1.0, 0.0, nan, nan], [0.52, 0.48, 0.52, 0.48], [nan] * 4]).double()
"""Three groups of four completions, of which two, four and none were judged."""
SPREAD = math.sqrt((2 * 0.5**2 + 4 * 0.02**2) / 6)
"""Standard deviation of the six rewards that exist."""


@pytest.fixture
def partly_judged() -> GroupBatch:
    missing = REWARDS.isnan()
    rewards = impute(REWARDS, missing)
    return GroupBatch(rewards, rewards.round(), has_reward=~missing, has_correct=~missing)


@pytest.mark.parametrize(
    ("advantage", "first"),
    [
        (GRPOAdvantage(eps=0), [1.0, -1.0, 0, 0]),
        (RLOOAdvantage(), [1.0, -1.0, 0, 0]),
        (GPGAdvantage(), [0.75, -0.75, 0, 0]),  # alpha = 3 / 2
    ],
)
def test_a_missing_reward_is_left_out_of_its_group(
    advantage: Advantage, first: list[float], partly_judged: GroupBatch
) -> None:
    assert advantage(partly_judged)[0].tolist() == pytest.approx(first)


def test_a_group_without_rewards_has_no_advantages(partly_judged: GroupBatch) -> None:
    assert ReinforceAdvantage()(partly_judged)[2].tolist() == [0.0] * 4
    assert GRPO().estimate(partly_judged)[1]["zero_advantage"] == 0.0


def test_a_missing_reward_is_left_out_of_the_statistics_of_a_batch(partly_judged: GroupBatch) -> None:
    found = GRPOAdvantage(eps=0, scale="batch")(partly_judged)
    assert found[1].tolist() == pytest.approx([0.02 / SPREAD, -0.02 / SPREAD] * 2)
    assert (found[2] == 0).all()
    mean, std = reward_statistics(partly_judged, "reward", "batch")
    assert float(mean[0]) == pytest.approx(0.5)
    assert float(std[0]) == pytest.approx(SPREAD)


def test_agraes_average_is_over_the_rewards_that_exist(partly_judged: GroupBatch) -> None:
    agrae = AGRAE(omega_from="reward")
    agrae(partly_judged)
    assert agrae.metrics == pytest.approx({"omega": 3 / 6})
    agrae(replace(partly_judged, has_reward=partly_judged.has_reward & False))
    assert agrae.metrics == pytest.approx({"omega": 3 / 6}), "nothing new"


def test_a_reference_s_missing_reward_gives_no_margin(partly_judged: GroupBatch) -> None:
    partly_judged.reference_rewards = torch.tensor([[0.5, nan, 1, 1], [nan] * 4, [0.0] * 4]).double()
    aapo = AAPOAdvantage(base="dr_grpo", clip=False)
    found = aapo(partly_judged)
    assert found[0].tolist() == pytest.approx([0.5 + 0.5, -0.5, 0, 0])
    assert (found[2] == 0).all()
    assert aapo.metrics["margin"] == 0.5


# ---- by hand ---------------------------------------------------------------------------------------------------


def test_a_degenerate_group_is_exactly_zero_whatever_rounding_leaves() -> None:
    r = torch.tensor([[0.1 + 0.2, 0.3, 0.3]], dtype=torch.float64)
    for name in ("grpo", "dr_grpo", "gpg", "rloo", "agrae", "hard_focused"):
        assert (REGISTRY[name]()(GroupBatch(r, torch.tensor([[1.0, 0, 1]]).double())) == 0).all(), name


@pytest.mark.parametrize("size", [2, 3, 6])
def test_maxrl_is_unbiased_for_one_term_less_than_the_group_has_completions(size: int) -> None:
    """By all outcomes of a group of 0/1 rewards, each right with probability p: its score is (r - p) / (p (1 - p))."""
    for p in (0.1, 0.5, 0.8):
        gradient = 0.0
        for outcome in product([0, 1], repeat=size):
            found = MaxRLAdvantage()(binary(list(outcome)))[0].tolist()
            likelihood = p ** sum(outcome) * (1 - p) ** (size - sum(outcome))
            scores = [(r - p) / (p * (1 - p)) for r in outcome]
            gradient += likelihood * sum(a * s for a, s in zip(found, scores, strict=True)) / size
        assert gradient == pytest.approx(sum((1 - p) ** k for k in range(size - 1)))  # towards 1 / p


def test_pass_at_k_is_xtuners_closed_form_but_for_groups_without_a_right_answer() -> None:
    """xtuner b934f46 adds 1e-6 to the deviation; where all are wrong it gives -1 / 1e-6 = -1e6."""
    for n, k in ((4, 2), (6, 3), (8, 4)):
        for right in range(1, n):
            rho = 1 - math.comb(n - right, k) / math.comb(n, k)
            sigma = math.sqrt(rho * (1 - rho)) + 1e-6
            wrong = (1 - rho - math.comb(n - right - 1, k - 1) / math.comb(n - 1, k - 1)) / sigma
            found = PassAtKAdvantage(k=k)(binary([1] * right + [0] * (n - right)))[0]
            expected = [(1 - rho) / sigma] * right + [wrong] * (n - right)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)
        assert (PassAtKAdvantage(k=k)(binary([0] * n)) == 0).all()


def test_aapo_keeps_the_margin_of_degenerate_groups_and_reports_what_it_does() -> None:
    group = binary([1, 1], [0, 0], [1, 0])
    group.reference_rewards = torch.tensor([[0.0, 1], [0, 1], [0, 0]]).double()
    advantage = AAPOAdvantage()
    assert advantage(group)[:2].tolist() == [[0.28, 0.0], [0.0, -0.2]]
    assert advantage.metrics == pytest.approx(
        {"margin": (0.28 + 0 + 0 - 0.2 + 0.28 + 0) / 6, "zero_advantage_base": 4 / 6}
    )
    assert AAPOAdvantage(margin="group_mean", clip=False)(group)[0].tolist() == [0.5, 0.5]


def test_grpo_lead_prefers_the_shorter_correct_answer_and_weighs_by_difficulty() -> None:
    c = torch.tensor([[1.0, 1, 0, 0]]).double()
    group = GroupBatch(c, c, None, torch.tensor([[10.0, 20, 5, 5]]).double())
    found = GRPOLeadAdvantage()(group)[0]
    assert found[0] > found[1] > 0 > found[2] == found[3]
    hard = GRPOLeadAdvantage()(
        GroupBatch(c * 0 + torch.tensor([1.0, 0, 0, 0]), c * 0 + torch.tensor([1.0, 0, 0, 0]), None, group.lengths)
    )
    assert float(hard[0, 0]) == pytest.approx(math.sqrt(3) * (0.4 + 1.1 / (1 + math.exp(10 * (0.25 - 0.75)))), rel=1e-5)


# ---- names, nesting, state -------------------------------------------------------------------------------------


def double(groups: GroupBatch) -> torch.Tensor:
    return 2 * groups.rewards


def test_a_base_is_a_name_a_dotted_path_a_class_or_a_function() -> None:
    group = binary([1, 0, 0], [1, 1, 0])
    expected = PositiveDominant(base="dr_grpo")(group)
    for base in ("lit_rlvr.advantages.DrGRPOAdvantage", DrGRPOAdvantage()):
        assert torch.equal(PositiveDominant(base=base)(group), expected)
    assert torch.equal(PositiveDominant(base=double)(group), 20 * group.rewards)  # type: ignore[arg-type]
    assert torch.equal(PositiveDominant(base=f"{__name__}.double")(group), 20 * group.rewards)
    nested = AGRAE(base=HardFocused(base=PositiveDominant(base="dr_grpo", beta=2.0)))
    assert nested.min_group == 2
    assert nested.reference_completions is None
    assert AGRAE(base="aapo").reference_completions == ReferenceCompletions()


def test_agraes_average_begins_with_the_first_rollout_that_is_judged() -> None:
    agrae, right = AGRAE(omega_scope="ema"), torch.ones(1, 2)
    for judged, metrics in ((False, {}), (True, {"omega": 1.0}), (False, {"omega": 1.0})):
        agrae(GroupBatch(right, right * judged, has_correct=torch.full((1, 2), judged)))
        assert agrae.metrics == metrics


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "use one of .*grpo_lead"),
        ("lit_rlvr.advantages.EQUAL_SPREAD", "names: .*grpo_lead"),
        ("lit_rlvr.nothing", "cannot be imported: AttributeError"),
        ("no_module.x", "No module named 'no_module'"),
        ("lit_rlvr.advantages.Advantages", "did you mean 'Advantage'"),
    ],
)
def test_an_unknown_name_is_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        resolve_advantage(name)
    assert "\n" not in str(error.value)


def test_the_moving_average_starts_at_the_first_batch_and_survives_a_resume() -> None:
    batches = [binary([1, 0], [1, 1]), binary([0, 0], [1, 0]), binary([1, 0], [0, 0])]  # omega 3/4, 1/4, 1/4
    advantage = AGRAE(omega_scope="ema", ema_decay=0.8, base=HardFocused(base="dr_grpo"))
    averages = [0.75, 0.8 * 0.75 + 0.2 * 0.25, 0.8 * (0.8 * 0.75 + 0.2 * 0.25) + 0.2 * 0.25]
    for group, omega in zip(batches[:2], averages[:2], strict=True):
        advantage(group)
        assert advantage.metrics == pytest.approx({"omega": omega})
    resumed = AGRAE(omega_scope="ema", ema_decay=0.8, base=HardFocused(base="dr_grpo"))
    resumed.load_state_dict(advantage.state_dict())
    assert torch.equal(resumed(batches[2]), advantage(batches[2]))
    assert resumed.metrics["omega"] == pytest.approx(averages[2])
    plain = AGRAE(omega_scope="ema", ema_decay=0.8)
    for group, omega in zip(batches, averages, strict=True):
        np.testing.assert_allclose(plain(group), slow("agrae", group, omega=omega), rtol=1e-9)


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"reinforce", "reinforce_pp", "none"}))
def test_a_group_of_one_is_refused(name: str) -> None:
    one = torch.tensor([[1.0], [0.0]])
    with pytest.raises(UserError, match="group size of 2"):
        REGISTRY[name]()(GroupBatch(one, one, one, one))
    assert REGISTRY[name]().min_group == (3 if name == "pass_at_k" else 2)


def test_what_cannot_be_computed_is_said() -> None:
    group = GroupBatch(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 0.0]]))
    for advantage, rewards, said in (
        (AAPOAdvantage(), group.rewards, "reference"),
        (REGISTRY["grpo_lead"](), group.rewards, "advantage grpo_lead: needs the completions' lengths"),
        (REGISTRY["opo"](), group.rewards, "advantage opo: needs the completions' lengths"),
        (REGISTRY["reinforce_pp"](), group.rewards, "advantage reinforce_pp: needs the completions' lengths"),
        (AGRAE(p_from="reward"), group.rewards - 1, "use p_from: correct"),
        (AGRAE(omega_from="reward"), group.rewards * 3 + 3, "use omega_from: correct"),
    ):
        with pytest.raises(UserError, match=said):
            advantage(GroupBatch(rewards, group.correct))
    for kind, options, said in (
        (PassAtKAdvantage, {"k": 0}, r"advantage pass_at_k.k: 0 must lie in \[1, inf\)"),
        (AGRAE, {"alpha": 0.0}, "agrae"),
        (AGRAE, {"alpha": 1.5}, "agrae"),
        (AGRAE, {"omega_floor": 2.0}, "agrae"),
        (AGRAE, {"ema_decay": 1.0}, "agrae"),
        (AAPOAdvantage, {"delta_low": 0.5}, "delta_low"),
        (
            AGRAE,
            {"base": type("OfTokens", (GRPOAdvantage,), {"needs_tokens": True})()},
            "agrae.base: OfTokens gives each token an advantage",
        ),
    ):
        with pytest.raises(UserError, match=said):
            kind(**options)
