"""Terms of the objective: where they count, what they get, and what a checkpoint keeps of them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_fit import Recorder, fit
from torch import Tensor

from lit_rlvr.algorithms import GRPO
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import LossInputs, Stats, kl_estimate
from lit_rlvr.training import terms
from lit_rlvr.training.terms import Need, Term


class Own(Term):
    """A formula of ours, written again."""

    def __init__(self, coef: float, need: Need, place: Any = "loss") -> None:
        super().__init__(coef)
        self.needs, self.place, self.metric = (need,), place, "kl" if need == "ref_logp" else ""

    def cost(self, x: Any) -> Tensor:
        if self.needs == ("entropy",):
            return -x.entropy
        if self.needs == ("correct",):
            return -x.logp * x.correct[:, None]
        return kl_estimate(x.logp, x.ref_logp, x.mask) if self.needs == ("ref_logp",) else x.logp - x.teacher_logp


def test_a_term_of_ones_own_is_computed_as_ours(tiny_model_folder: Path, tmp_path: Path) -> None:
    def train(**options: Any) -> Recorder:
        return fit(tiny_model_folder, tmp_path, 3, updates_per_rollout=2, **options)[1]

    plain = train().weights[-1]
    cases: list[tuple[dict[str, Any], Own]] = [
        ({"kl": {"coef": 0.1}}, Own(0.1, "ref_logp")),
        ({"kl": {"coef": 0.1, "in_reward": True}}, Own(0.1, "ref_logp", "rewards")),
        ({"loss": {"entropy_coef": 0.1}}, Own(0.1, "entropy")),
        ({"loss": {"positive_nll_coef": 0.1}}, Own(0.1, "correct")),
    ]
    for ours, own in cases:
        built_in, seen = train(**ours), train(terms=[own])
        last, expected = seen.weights[-1], built_in.weights[-1]
        assert all(torch.equal(last[name], expected[name]) for name in expected), ours
        assert not all(torch.equal(last[name], plain[name]) for name in last), ours
        untimed = [[{k: v for k, v in row.items() if "train/" in k} for row in run.metrics] for run in (seen, built_in)]
        assert untimed[0] == untimed[1], ours


def test_a_term_in_the_advantages_is_taken_from_each_token(tiny_model_folder: Path, tmp_path: Path) -> None:
    class Surprise(Term):
        place = "advantages"
        metric = "surprise"

        def cost(self, x: Any) -> Tensor:
            return -x.logp

    (_, plain), (_, seen) = (fit(tiny_model_folder, tmp_path, terms=terms) for terms in ([], [Surprise(0.5)]))
    rollout, before = seen.rollouts[0], plain.rollouts[0]
    logp = torch.where(rollout.mask, rollout.rollout_logprobs, 0.0)
    mean = (logp.sum(1) / rollout.mask.sum(1)).view(rollout.rewards.shape)
    assert rollout.advantages is not None and before.advantages is not None
    torch.testing.assert_close(rollout.advantages, before.advantages + 0.5 * mean, rtol=1e-5, atol=1e-6)
    assert seen.metrics[0]["train/surprise"] == pytest.approx(float(-logp.sum() / rollout.mask.sum()), rel=1e-5)
    assert rollout.mask.any(1).sum() == sum(map(len, seen.minibatches)) * rollout.group_size


class Counts(Term):
    """Costs more at each iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.iterations = 0

    def cost(self, x: LossInputs) -> Tensor:
        return x.logp * self.iterations

    def renew(self, policy: Any, iteration: int) -> None:
        self.iterations += 1

    def state_dict(self) -> dict[str, Any]:
        return {"iterations": self.iterations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iterations = state["iterations"]


def test_a_term_goes_on_from_a_checkpoint(tiny_model_folder: Path, tmp_path: Path) -> None:
    module, _ = fit(tiny_model_folder, tmp_path, 2, terms=[Counts(), Counts()])
    module.terms[1].iterations = 7
    module.trainer.save_checkpoint(tmp_path / "2.ckpt")
    resumed, _ = fit(tiny_model_folder, tmp_path, 3, terms=[Counts(), Counts()], checkpoint=tmp_path / "2.ckpt")
    assert [term.iterations for term in resumed.terms] == [3, 8]


class Clamps(Term):
    def cost(self, x: LossInputs) -> Tensor:
        return x.old_logp.clamp_(min=-1.0)


class Constant(Term):
    def cost(self, x: LossInputs) -> Tensor:
        return x.logp.detach()


class Sums(Term):
    def cost(self, x: LossInputs) -> Tensor:
        return x.logp.sum()


class Infinite(Term):
    place = "rewards"

    def cost(self, x: Any) -> Tensor:
        return x.logp / 0


class Unbounded(Term):
    """A square root whose gradient at 0 is infinite, or a logarithm that is infinite itself."""

    def __init__(self, place: Any, function: Callable[[Tensor], Tensor], coef: float = 1.0) -> None:
        super().__init__(coef)
        self.place, self.function = place, function

    def cost(self, x: Any) -> Tensor:
        return self.function(x.logp - x.logp.detach())


@pytest.mark.parametrize("function", [torch.sqrt, torch.log])
def test_a_term_in_the_loss_that_is_not_finite_is_named(
    tiny_model_folder: Path, tmp_path: Path, function: Callable[[Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    terms = [Counts(), Unbounded("loss", function)]
    with pytest.raises(UserError) as error:
        fit(tiny_model_folder, tmp_path, 2, terms=terms, kl={"coef": 0.1}, optim={"max_skipped_steps": 1})
    for said in (str(error.value), caplog.text):
        assert "not finite because of model.terms: Unbounded.cost (" in said and "Counts" not in said
    assert "mend the term" in str(error.value) and "model.lr" not in str(error.value)


@pytest.mark.parametrize("place", ["rewards", "advantages"])
def test_a_term_that_is_too_large_for_rewards_is_named(tiny_model_folder: Path, tmp_path: Path, place: Any) -> None:
    with pytest.raises(UserError, match=rf"^model.terms: Unbounded\.cost .* coef 1e\+30 is too large for the {place}"):
        fit(tiny_model_folder, tmp_path, terms=[Unbounded(place, torch.exp, 1e30)])


class Complex(Term):
    def cost(self, x: LossInputs) -> Tensor:
        return x.logp * 1j


class Whole(Term):
    place = "advantages"

    def cost(self, x: Any) -> Tensor:
        return x.mask.long()


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (Infinite(), r"^model.terms: Infinite\.cost .* real numbers in a tensor .* values that are not finite"),
        (Complex(), r"^model.terms: Complex\.cost .* it gave torch.complex64"),
        (Whole(), r"^model.terms: Whole\.cost .* it gave torch.int64"),
        (Clamps(), r"model.terms: Clamps\.cost .*test_terms.py:\d+.* changes .*x.old_logp in place"),
        (Sums(), r"model.terms: Sums\.cost .*test_terms.py:\d+.* must return a cost for each token"),
        (Own(1.0, "teacher_logp", "advantages"), "model.terms: Own needs a teacher; give model.teacher"),
        (Own(1.0, "correct", "rewards"), "Own cannot need 'correct' in the rewards"),
        (Own(1.0, "ref_logp", "reward"), "place = 'reward' of Own is none of loss, rewards, advantages"),
        (Constant(), r"Constant\.cost .* has no gradient"),
    ],
)
def test_a_wrong_term_is_named(tiny_model_folder: Path, tmp_path: Path, term: Term, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fit(tiny_model_folder, tmp_path, terms=[term])


class NoCost(Term): ...


class NoSuper(Term):
    def __init__(self) -> None:
        self.scale = 1.0

    def cost(self, x: LossInputs) -> Tensor:
        return x.logp


class TwoInputs(Term):
    def cost(self, x: LossInputs, group: Any) -> Tensor:  # type: ignore[override]
        return x.logp


class OwnCoef(Term):
    def __init__(self, coef: Any) -> None:
        super().__init__()
        self.coef = coef

    def cost(self, x: LossInputs) -> Tensor:
        return x.logp


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (NoCost, "model.terms: NoCost has no cost; give it a method"),
        (NoSuper, r"model.terms: NoSuper\.__init__ .* must call super"),
        (TwoInputs, r"TwoInputs\.cost .* must take \(x\)"),
        (lambda: OwnCoef(math.nan), "model.terms: coef of OwnCoef is nan"),
        (lambda: OwnCoef(math.inf), "model.terms: coef of OwnCoef is inf"),
        (lambda: OwnCoef("1"), "model.terms: coef of OwnCoef is '1'"),
    ],
)
def test_a_term_that_cannot_be_computed_is_refused_when_it_is_given(make: Callable[[], Term], said: str) -> None:
    with pytest.raises(UserError, match=said):
        GRPO(terms=[make()])


class FakeTimer:
    """A timer that rings when a test says so."""

    made: list["FakeTimer"]

    def __init__(self, seconds: float, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.made.append(self)
        self.seconds = seconds
        self.is_running = False
        self.ring = lambda: function(*arguments)

    def start(self) -> None:
        self.is_running = True

    def cancel(self) -> None:
        self.is_running = False


def test_a_slow_term_is_named_while_it_runs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(FakeTimer, "made", [], raising=False)
    monkeypatch.setattr(terms, "Timer", FakeTimer)
    with terms.said_if_slow(OwnCoef(1.0)):
        (timer,) = FakeTimer.made
        assert timer.is_running
        assert timer.seconds == terms.SLOW_COST_SECONDS
        assert caplog.text == ""
        timer.ring()
    assert "OwnCoef.cost" in caplog.text and "is still computing" in caplog.text
    assert not timer.is_running


def test_an_objective_gets_what_it_says_it_needs(tiny_model_folder: Path, tmp_path: Path) -> None:
    class Anchored(GRPO):
        objective_needs = ("ref_logp", "correct")

        def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
            loss, stats = super().objective(x)
            assert x.ref_logp is not None and x.correct is not None
            return loss, stats | {"far": (x.logp.detach() - x.ref_logp).abs().sum(), "right": x.correct.sum()}

    _, seen = fit(tiny_model_folder, tmp_path, 2, algorithm=Anchored)
    assert seen.metrics[0]["train/far"] == pytest.approx(0, abs=1e-5)
    assert seen.metrics[1]["train/far"] > 1e-3 and seen.metrics[0]["train/right"] > 0
