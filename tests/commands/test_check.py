"""`lit-rlvr check`: what is shipped has every property, and what is broken lacks just the one it breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import CLI
from torch import Tensor

from lit_rlvr import algorithms
from lit_rlvr.advantages import REGISTRY, GroupBatch
from lit_rlvr.algorithms import CISPO, GRPO, RLVRModule
from lit_rlvr.commands.check import Finding, check_advantage, check_algorithm
from lit_rlvr.commands.check.command import check_by_name
from lit_rlvr.conformance.published import LOSSES
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import LossInputs, Stats, masked_sum, ratio

SHIPPED = [name for name in algorithms.__all__ if name != "RLVRModule"]


def failed(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings if not finding.ok]


# ---- what is shipped ---------------------------------------------------------------------------------------------


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in SHIPPED), ("GRPO", {"kl": {"coef": 0.1}, "loss": {"entropy_coef": 0.01}})],
)
def test_every_algorithm_passes(name: str, options: dict[str, Any]) -> None:
    """Those with frozen results are compared with them, if all options are the defaults."""
    findings = check_by_name(name, options)
    assert [str(f) for f in findings if not f.ok] == []
    compared = [f.measured for f in findings if f.name.startswith("values: ")]
    assert len(compared) == (3 if name in LOSSES and not options else 0)
    assert max(compared, default=0) < 1e-13


def test_a_loss_with_other_values_than_the_published_ones_fails() -> None:
    assert failed(check_algorithm(GRPO(clip_high=0.3), "GRPO")) == ["values: regular", "values: ragged"]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_advantage_passes(name: str) -> None:
    """But that `none` does not tell right completions from wrong ones."""
    assert failed(check_advantage(name)) == (["rewards"] if name == "none" else [])


@pytest.mark.parametrize(
    "options",
    [
        {"advantage": "agrae"},
        {"dual_clip": 3.0},
        {"loss": {"aggregation": "constant"}},
        {"loss": {"aggregation": "token_sum"}},
        {"kl": {"coef": 0.1, "in_reward": True, "estimator": "k1"}},
        {"kl": {"coef": 0.1, "estimator": "k2"}},
        {"loss": {"balance_coef": 0.1, "positive_nll_coef": 0.1}},
    ],
)
def test_options_pass(options: dict[str, Any]) -> None:
    assert failed(check_algorithm(GRPO(**options))) == []


def test_the_kl_term_does_not_count_as_the_objective_s_ratio() -> None:
    assert failed(check_algorithm(Plain(kl={"coef": 0.1, "bias_correction": True}))) == []  # type: ignore[arg-type]


# ---- what is broken ----------------------------------------------------------------------------------------------


class Plain(RLVRModule):
    """REINFORCE on the tokens, as it should be."""

    has_ratio = False

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        return -masked_sum(x.logp * x.advantages, x.token_weight, x.mask), {}


class Undeclared(Plain):
    """Has no ratio without saying so."""

    has_ratio = True


class Overdeclared(GRPO):
    """Has a ratio and denies it."""

    has_ratio = False


class OwnDeviation(RLVRModule):
    """Is not a number for a single row."""

    has_ratio = False

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        return -masked_sum(x.logp * x.advantages, x.token_weight, x.mask) + 0 * x.row_weight.std(), {}


class Detached(RLVRModule):
    """Holds the ratio without saying so."""

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        w = ratio(x.logp, x.old_logp, x.mask).detach()
        return -masked_sum(w * x.logp * x.advantages, x.token_weight, x.mask), {}


class HalfDetached(CISPO):
    """Says that it holds the ratio, and scales the gradient besides."""

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        loss, stats = super().objective(x)
        return Doubled.apply(loss), stats


class Doubled(torch.autograd.Function):
    """A wrong backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * gradient


class Regularised(RLVRModule):
    """Has a term that does not vanish with the advantage, and training skips such rows."""

    has_ratio = False

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        return masked_sum(x.logp.square() - x.logp * x.advantages, x.token_weight, x.mask), {}


class OnlyWrong(RLVRModule):
    """Learns nothing from what is right."""

    has_ratio = False

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        return -masked_sum(x.logp * x.advantages.clamp(max=0), x.token_weight, x.mask), {}


class OnlyRight(RLVRModule):
    """Leaves out what is wrong, as rejection sampling does."""

    has_ratio = False

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        return -masked_sum(x.logp * x.advantages.clamp(min=0), x.token_weight, x.mask), {}


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("algorithm", "broken"),
    [
        (Plain, []),
        (OnlyRight, []),
        (Undeclared, ["ratio"]),
        (Overdeclared, ["ratio"]),
        (OnlyWrong, ["direction"]),
        (OwnDeviation, ["micro-batches"]),
        (Detached, ["gradient"]),
        (HalfDetached, ["gradient"]),
        (Regularised, ["zero advantages"]),
    ],
)
def test_a_broken_algorithm_lacks_what_it_breaks(algorithm: type[RLVRModule], broken: list[str]) -> None:
    findings = check_algorithm(algorithm())
    assert failed(findings) == broken, "\n".join(map(str, findings))


def test_completions_without_a_chosen_token_may_stay_where_they_are() -> None:
    """Clip-Cov that leaves out half of all tokens, and with them whole completions."""
    halved = algorithms.ClipCov(clip_share=0.5, covariance_low=-0.0001, covariance_high=100.0)
    assert "direction" not in failed(check_algorithm(halved))


def to_the_first(groups: GroupBatch) -> Tensor:
    return groups.rewards - groups.rewards[:1]


def by_place(groups: GroupBatch) -> Tensor:
    return groups.rewards * torch.arange(groups.rewards.shape[1])


def unguarded(groups: GroupBatch) -> Tensor:
    return (groups.rewards - groups.rewards.mean(1, keepdim=True)) / groups.rewards.std(1, keepdim=True)


def always_one(groups: GroupBatch) -> Tensor:
    return torch.ones_like(groups.rewards)


def of_a_prompt(groups: GroupBatch) -> Tensor:
    return groups.rewards.mean(1)


def nothing(groups: GroupBatch) -> None:
    return None


def short_where_equal(groups: GroupBatch) -> Tensor:
    return groups.rewards[:, :1] if (groups.rewards == groups.rewards[:, :1]).all() else groups.rewards


def signed(groups: GroupBatch) -> Tensor:
    return torch.sign(groups.rewards - groups.rewards.mean(1, keepdim=True))


@pytest.mark.parametrize("advantage", [of_a_prompt, nothing, short_where_equal])
def test_what_is_no_advantage_is_refused(advantage: Callable[[GroupBatch], Any]) -> None:
    with pytest.raises(
        UserError, match=rf"{advantage.__name__}.* must give finite values of shape \(P, G\) = \(6, 4\)"
    ):
        check_advantage(advantage)


@pytest.mark.parametrize(
    ("advantage", "broken"),
    [
        (always_one, ["rewards"]),
        (to_the_first, ["order of groups", "order of completions"]),
        (by_place, ["order of completions"]),
        (unguarded, ["equal rewards"]),
        (signed, ["rounding"]),
    ],
)
def test_a_broken_advantage_lacks_what_it_breaks(advantage: Callable[[GroupBatch], Tensor], broken: list[str]) -> None:
    assert failed(check_advantage(advantage)) == broken


def test_an_algorithm_with_a_broken_advantage_fails_too() -> None:
    assert failed(check_algorithm(Plain(advantage="test_check.by_place"))) == ["order of completions"]
    assert failed(check_algorithm(Plain(advantage="test_check.unguarded"))) == ["equal rewards"]
    assert failed(check_algorithm(Plain(advantage="test_check.always_one"))) == ["rewards"]
    with pytest.raises(UserError, match="of_a_prompt"):
        check_algorithm(Plain(advantage="test_check.of_a_prompt"))


# ---- how it measures ---------------------------------------------------------------------------------------------


def test_the_algorithm_is_not_changed() -> None:
    module = GRPO(advantage="agrae")
    before = module.advantage.state_dict()
    check_algorithm(module)
    assert module.advantage.state_dict() == before


def test_what_is_not_finite_is_never_ok() -> None:
    assert not Finding("x", float("nan"), 1.0, "").ok
    assert not Finding("x", float("inf"), 1.0, "").ok
    assert Finding("x", 0.5, 1.0, "").ok


# ---- the command -------------------------------------------------------------------------------------------------

MODULE = """
from lit_rlvr.algorithms import RLVRModule
from lit_rlvr.objectives import masked_sum
from lit_rlvr.training.terms import Term
class Plain(RLVRModule):
    has_ratio = False
    def __init__(self, broken: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.broken = broken
    def objective(self, x):
        weight = x.mask / x.mask.sum().clamp(min=1) if self.broken else x.token_weight
        return -masked_sum(x.logp * x.advantages, weight, x.mask), {}
def my_loss(x):
    return -masked_sum(x.logp * x.advantages, x.token_weight, x.mask), {}
def batch_loss(x):
    return -masked_sum(x.logp * x.advantages, x.mask / x.mask.sum().clamp(min=1), x.mask), {}
class Confidence(Term):
    def cost(self, x):
        return x.logp
class Forgetful(Term):
    def cost(self, x):
        return (x.logp - x.logp[x.mask].mean()) ** 2
class Taught(Term):
    needs = ("teacher_logp",)
    def cost(self, x):
        return x.logp - x.teacher_logp
def centred(groups):
    return groups.rewards - groups.rewards.mean(1, keepdim=True)
def flat(groups):
    return groups.rewards.mean(1)
class Neither: ...
class Callable:
    def __call__(self, groups):
        return groups.rewards
number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_losses.py").write_text(MODULE)
    (tmp_path / "own.yaml").write_text("model: {class_path: own_losses.Plain, init_args: {lr: 0.1, broken: true}}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_exits_with_1_if_a_property_fails(own: Path, lit_rlvr: CLI) -> None:
    good = lit_rlvr("check", "own_losses.Plain")
    assert (good.status, good.out.count("ok  "), "own_losses.Plain: all hold" in good.out) == (0, 16, True)
    bad = lit_rlvr("check", "own_losses.Plain", "--init_args.broken", "true")
    assert (
        bad.status,
        [text for text in ("FAILED  micro-batches", "3 of 16 properties FAILED") if text not in bad.out],
    ) == (1, [])
    assert lit_rlvr("check", "--config", "own.yaml").status == 1
    assert lit_rlvr("check", "--config", "own.yaml", "--init_args.broken", "false").status == 0
    assert lit_rlvr("check", "own_losses.centred").status == 0


def test_losses_as_functions_and_terms_are_measured(own: Path, lit_rlvr: CLI) -> None:
    without_ratio = ("--init_args.has_ratio", "false")
    assert lit_rlvr("check", "FunctionLoss", "--init_args.function", "own_losses.my_loss", *without_ratio).status == 0
    plain = lit_rlvr("check", "own_losses.my_loss")
    assert [line for line in plain.out.splitlines() if "FAILED" in line and "ratio" not in line] == [
        "own_losses.my_loss: 1 of 16 properties FAILED"
    ], "it has no ratio, which only FunctionLoss can be told"
    assert "FAILED  micro-batches" in lit_rlvr("check", "own_losses.batch_loss").out
    assert lit_rlvr("check", "own_losses.Confidence", "--init_args.coef", 0.1).status == 0
    assert "FAILED  micro-batches" in lit_rlvr("check", "own_losses.Forgetful").out
    lit_rlvr("check", "own_losses.Taught", status=2, says="own_losses.Taught needs teacher_logp of a model")
    (own / "broken_losses.py").write_text("my_loss = no_such_name\n")
    function = ("--init_args.function", "broken_losses.my_loss")
    lit_rlvr("check", "FunctionLoss", *function, status=2, says="broken_losses.py:1: NameError: name 'no_such_name'")


def test_arguments_without_types_are_options(own: Path, lit_rlvr: CLI) -> None:
    (own / "untyped.py").write_text(
        "from lit_rlvr.advantages import Advantage\nfrom lit_rlvr.algorithms import GRPO\n"
        "class Scaled(Advantage):\n    def __init__(self, scale, more=0):\n        self.scale = scale + more\n"
        "    def __call__(self, groups):\n"
        "        return self.scale * (groups.rewards - groups.rewards.mean(1, keepdim=True))\n"
        "class Plain(GRPO):\n    def __init__(self, scale, **kwargs):\n        super().__init__(**kwargs)\n"
    )
    for name in ("untyped.Scaled", "untyped.Plain"):
        assert lit_rlvr("check", name, "--init_args.scale", 2).status == 0
        assert f"{name} needs a value for scale; give it under init_args" in lit_rlvr("check", name).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give an algorithm, an advantage or a reward"),
        (["GRPPO"], "there is no 'GRPPO'"),
        (["no_such.Thing"], "cannot be imported"),
        (["own_losses.Neither"], "neither an algorithm"),
        (["own_losses.Callable"], "neither an algorithm"),
        (["own_losses.number"], "neither a class nor a function"),
        (["own_losses.flat"], "must give finite values of shape (P, G) = (6, 4)"),
        (["lit_rlvr.types.Sample"], "neither an algorithm"),
        (["lit_rlvr.advantages.Advantage"], "abstract"),
        (["lit_rlvr.algorithms.RLVRModule"], "abstract"),
        (["own_losses.centred", "--init_args.x", "1"], "takes no options"),
        (["GRPO", "--init_args.clip_lwo", "1"], "did you mean 'clip_low'"),
        (["GRPO", "--init_args.clip_low", "7"], "clip_low: 7"),
        (["--config", "nowhere.yaml"], "there is no file 'nowhere.yaml'"),
    ],
)
def test_what_is_no_algorithm_advantage_or_reward_is_refused(
    own: Path, lit_rlvr: CLI, arguments: list[str], said: str
) -> None:
    done = lit_rlvr("check", *arguments)
    assert (done.status, said in done.err, done.err.count("\n"), done.out) == (2, True, 1, "")
