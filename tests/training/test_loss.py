"""`LossModule`: what it makes of an objective, of a choice of tokens and of an estimator, and refuses of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_rollout
from tiny_fit import fit
from torch import Tensor

from lit_rlvr.advantages import AGRAE, GroupBatch, GRPOAdvantage, HardFocused
from lit_rlvr.algorithms import AAPO, GRPO, GSPO, FunctionLoss
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import OWN_STATS, LossInputs, Stats, StepTokens, masked_sum
from lit_rlvr.training.gather import gather_groups
from lit_rlvr.training.metrics import step_metrics
from lit_rlvr.training.step import updater

# ---- loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (lambda x: None, "it gave None"),
        (lambda x: x.logp.sum(), "it gave torch.float32 of shape ()"),
        (
            lambda x: (x.logp, {}),
            "the loss must be a tensor on cpu with one real number, not torch.float32 of shape (2, 3)",
        ),
        (lambda x: (0.0, {}), "the loss must be a tensor on cpu with one real number, not a float"),
        (lambda x: (x.logp.detach().sum(), {}), "the loss has no gradient"),
        (lambda x: (x.logp.sum(), None), "stats must be a dict of names and tensors, not None"),
        (lambda x: (x.logp.sum(), {"a": 1.0}), "stats['a'] must be a tensor on cpu with one real number, not a float"),
        (lambda x: (x.logp.sum(), {"tokens": x.mask.sum()}), "every run measures 'tokens' itself"),
    ],
)
def test_what_an_objective_gives_is_checked(objective: Callable[..., Any], said: str) -> None:
    logp, ones = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3)
    x = LossInputs(logp, ones, ones.bool(), ones[:, :1], ones, ones[:, 0], torch.tensor([0, 0]), ones, logp)
    with pytest.raises(UserError, match=r"model: <lambda> \(.*test_loss.py:\d+\) must give \(loss, stats\)") as error:
        FunctionLoss(objective).loss(x)
    assert said in str(error.value)


def test_a_statistic_and_a_term_of_one_name_are_refused() -> None:
    logp, ones = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3)
    x = LossInputs(
        logp, ones, ones.bool(), ones[:, :1], ones, ones[:, 0], torch.tensor([0, 0]), ones, logp, ref_logp=ones
    )
    loss = FunctionLoss(lambda x: (x.logp.sum(), {"kl": x.mask.sum()}), kl={"coef": 0.1})
    with pytest.raises(UserError, match=r"its metric 'kl' is a statistic of .*<lambda>.*rename one of them"):
        loss.loss(x)


def test_all_sums_that_a_step_makes_itself_have_refused_names(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: set[str] = set()

    def noted(sums: Stats) -> dict[str, float]:
        names.update(sums)
        return step_metrics(sums)

    monkeypatch.setattr(updater, "step_metrics", noted)
    fit(
        tiny_model_folder,
        tmp_path,
        1,
        algorithm=FunctionLoss,
        function=lambda x: (-masked_sum(x.logp * x.advantages, x.token_weight, x.mask), {}),
        importance={"correction": "token_reject"},
    )
    assert names <= {*OWN_STATS} and {"loss", "tokens", "entropy", "engine_ratio", "importance_dropped"} <= names


def test_a_loss_without_a_class_is_that_of_the_class(tiny_model_folder: Path, tmp_path: Path) -> None:
    def surrogate(x: LossInputs) -> tuple[Tensor, Stats]:
        w = (x.logp - x.old_logp).exp()
        return -masked_sum(
            torch.minimum(w * x.advantages, w.clamp(0.8, 1.2) * x.advantages), x.token_weight, x.mask
        ), {}

    _, expected = fit(tiny_model_folder, tmp_path, 2, updates_per_rollout=2)
    _, seen = fit(tiny_model_folder, tmp_path, 2, updates_per_rollout=2, algorithm=FunctionLoss, function=surrogate)
    for name, value in expected.weights[-1].items():
        torch.testing.assert_close(seen.weights[-1][name], value, rtol=0, atol=1e-6)


# ---- choose_tokens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "count", "wanted"), [(0.3, 56, 17), (0.2, 55, 11), (0.07, 100, 7), (0.001, 56, 1)])
def test_the_tokens_of_the_highest_entropy_are_as_many_as_the_rule_says(share: float, count: int, wanted: int) -> None:
    """Also where the completions of a prompt begin alike, so that several tokens have the entropy of the threshold."""
    for alike in (1, 4, count):
        tokens = StepTokens(*torch.rand(5, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
        tokens.entropy = tokens.entropy[torch.arange(count) // alike * alike] * (1 + 1e-7 * tokens.advantages)
        chosen, _ = GRPO(loss={"top_entropy_quantile": share}).choose_tokens(tokens)
        assert int(chosen.sum()) == wanted
        assert tokens.entropy[chosen].min() >= tokens.entropy[~chosen].max() * (1 - 1e-5)
        tied = (tokens.entropy - tokens.entropy[chosen].min()).abs() < 1e-6
        drawn, left = (tokens.chance[tied & part].tolist() for part in (chosen, ~chosen))
        assert min(drawn) > max(left, default=0), "of these it takes those of the largest chance"


# ---- estimate -------------------------------------------------------------------------------------------------

REWARDS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
GROUP = GroupBatch(REWARDS, REWARDS, reference_rewards=torch.zeros_like(REWARDS))


def test_the_estimate_of_a_module_is_logged() -> None:
    advantages, metrics = GRPO(advantage=AGRAE(base="dr_grpo")).estimate(GROUP)
    assert metrics == pytest.approx(
        {
            "omega": 0.5,
            "advantage": float(advantages.mean()),
            "zero_advantage": 4 / 6,
            "advantage_positive_mass": float(advantages[0, 0]) / 6,
            "advantage_negative_mass": -float(advantages[0, 1]) / 6,
        }
    )
    assert AAPO().estimate(GROUP)[1].keys() >= {"margin", "zero_advantage_base", "zero_advantage"}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda group: group.rewards[0],
        lambda group: group.rewards / 0,
        lambda group: group.rewards.long(),
        lambda group: group.rewards.tolist(),
        lambda group: None,
    ],
)
def test_what_an_estimator_gives_is_checked(wrong: Any) -> None:
    for advantage in (wrong, HardFocused(base=wrong)):
        with pytest.raises(UserError, match=r"<lambda> \(.*test_loss.py:\d+\) must give finite values of shape"):
            GRPO(advantage=advantage).estimate(GROUP)


def test_an_estimator_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"must take \(groups\)"):
        GRPO(advantage=lambda: 1)  # type: ignore[arg-type, misc]

    class OfTokens(GRPOAdvantage):
        needs_tokens = True

        def __call__(self, groups: GroupBatch) -> Tensor:
            return torch.ones(6, 4)

    with pytest.raises(UserError, match=r"model.advantage: .*OfTokens.* gives each token .* GSPO weighs whole seq"):
        GSPO(advantage=OfTokens()).estimate(replace(GROUP, mask=torch.ones(6, 4, dtype=torch.bool)))


def test_costs_count_in_the_mean_that_stands_for_a_missing_reward() -> None:
    rollout = make_rollout([[1]], [[[5], [6], [7]]], [[1.0, 0.0, 0.5]])
    rollout.statuses = [["ok", "ok", "error"]]
    group = gather_groups(rollout, torch.tensor([[0.9, -0.3, 0.5]]), GRPOAdvantage())
    torch.testing.assert_close(group.rewards, torch.tensor([[0.9, -0.3, 0.3]]))


def test_metrics_of_an_advantage_are_numbers() -> None:
    class Silent(GRPOAdvantage):
        metrics = property(lambda self: {"baseline": None})

    with pytest.raises(UserError, match=r"model\.advantage: Silent\.metrics must return .*; 'baseline' is None"):
        GRPO(advantage=Silent()).estimate(GroupBatch(torch.eye(2), torch.eye(2)))
