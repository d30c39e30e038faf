"""The algorithms as modules: their defaults, what they say of a run's sizes, and their state."""

import inspect
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plans import plan_without_trainer
from slow_loops import random_case
from tiny import tiny_llama

import lit_rlvr.algorithms
from lit_rlvr.advantages import AGRAE, AAPOAdvantage, GroupBatch, ReferenceCompletions
from lit_rlvr.algorithms import (
    AAPO,
    APMPO,
    CISPO,
    DAPO,
    DPPO,
    DRO,
    FIPO,
    GMPO,
    GPG,
    GRPO,
    GSPO,
    LUSPO,
    M2PO,
    OPD,
    SAPO,
    TOPR,
    VESPO,
    ClipCov,
    DrGRPO,
    GRPOLead,
    GSPOToken,
    KLCov,
    Reinforce,
    RLVRModule,
)
from lit_rlvr.errors import UserError
from lit_rlvr.options import KL, Loss
from lit_rlvr.policy.policy import Policy
from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.rollout.preflight.sizes import check_settings, log_sizes

DEFAULTS: dict[type[RLVRModule], dict[str, Any]] = {
    GRPO: dict(advantage="grpo", loss={"aggregation": "sequence_mean"}, clip_low=0.2, clip_high=0.2, dual_clip=None),
    DAPO: dict(advantage="grpo", loss={"aggregation": "token_mean"}, clip_low=0.2, clip_high=0.28),
    DrGRPO: dict(advantage="dr_grpo", loss={"aggregation": "constant"}),
    GPG: dict(advantage="gpg", loss={"aggregation": "token_mean"}),
    GMPO: dict(advantage="grpo", clip_low=0.4, clip_high=0.4, dual_clip=None),
    APMPO: dict(
        advantage="grpo", kl={"coef": 0.001}, gamma=0.8, eps_low=0.2, eps_min=0.2, eps_max=0.4, adaptive_lower=False,
        dual_clip=None, schedule={"power": None, "power_schedule": "exp", "squash": "tanh", "fss": "ratio",
                                  "delta": 1e-6, "statistics": "batch", "statistics_from": "reward"},
    ),
    AAPO: dict(advantage="aapo", loss={"aggregation": "group_token_mean"}),
    OPD: dict(advantage="none", loss={"aggregation": "token_mean"}, teacher=None),
    Reinforce: dict(advantage="reinforce", loss={"aggregation": "token_mean"}),
    GRPOLead: dict(advantage="grpo_lead"),
    GSPO: dict(advantage="grpo", clip_low=3e-4, clip_high=4e-4, dual_clip=None),
    GSPOToken: dict(advantage="grpo", clip_low=3e-4, clip_high=4e-4, dual_clip=None),
    CISPO: dict(advantage="grpo", loss={"aggregation": "token_mean"}, ratio_cap=5.0, ratio_floor=0.0, dual_clip=None),
    SAPO: dict(advantage="grpo", loss={"aggregation": "sequence_mean"}, tau_pos=1.0, tau_neg=1.05),
    VESPO: dict(
        advantage="grpo", loss={"aggregation": "token_mean"}, k_pos=2.0, lambda_pos=3.0, k_neg=3.0, lambda_neg=2.0
    ),
    LUSPO: dict(advantage="grpo", clip_low=2e-3, clip_high=2.5e-3, dual_clip=None),
    DPPO: dict(
        advantage="grpo", loss={"aggregation": "token_mean"}, divergence="tv", delta_low=None, delta_high=None,
        drift_coef=0.0,
    ),
    ClipCov: dict(
        advantage="grpo", loss={"aggregation": "token_mean"}, clip_low=0.2, clip_high=0.2, clip_share=2e-4,
        covariance_low=1.0, covariance_high=5.0,
    ),
    KLCov: dict(advantage="grpo", loss={"aggregation": "token_mean"}, penalty_share=2e-4, penalty_coef=1.0),
    M2PO: dict(advantage="grpo", loss={"aggregation": "token_mean"}, threshold=0.04),
    FIPO: dict(
        advantage="grpo", loss={"aggregation": "token_mean"}, clip_low=0.2, clip_high=0.28, dual_clip=10.0,
        half_life=32.0, influence_low=1.0, influence_high=1.2, safe_ratio=4.0,
    ),
    TOPR: dict(advantage="dr_grpo", loss={"aggregation": "token_sum"}),
    DRO: dict(advantage="dr_grpo", beta=0.05),
}  # fmt: skip


def test_every_algorithm_is_here() -> None:
    assert {cls.__name__ for cls in DEFAULTS} == set(lit_rlvr.algorithms.__all__) - {"RLVRModule"}


@pytest.mark.parametrize("cls", DEFAULTS)
def test_defaults_are_the_papers(cls: type[RLVRModule]) -> None:
    owners = [owner for owner in reversed(cls.__mro__) if issubclass(owner, RLVRModule)]
    given = {name: p.default for owner in owners for name, p in inspect.signature(owner).parameters.items()}
    for name, value in DEFAULTS[cls].items():
        fields = {field: getattr(given[name], field) for field in value} if isinstance(value, dict) else given[name]
        assert fields == value, name
    assert (cls().kl.coef, cls().loss_options.entropy_coef) == (0.001 if cls is APMPO else 0.0, 0)
    if cls in (GMPO, APMPO, GSPO, GSPOToken):
        assert cls().loss_options.aggregation == "sequence_mean"


def test_a_group_given_in_part_keeps_the_class_s_own_defaults() -> None:
    for loss in (Loss(entropy_coef=0.1), {"entropy_coef": 0.1}):
        assert DAPO(loss=loss).loss_options == Loss("token_mean", entropy_coef=0.1)  # type: ignore[arg-type]
        assert FIPO(loss=loss).init_args["loss"] == Loss("token_mean", entropy_coef=0.1)
    assert APMPO(kl=KL(in_reward=True)).kl == KL(0.001, in_reward=True)
    assert DAPO(loss=Loss("sequence_mean")).loss_options.aggregation == "sequence_mean"


@pytest.mark.parametrize("cls", [GSPO, LUSPO, GMPO, APMPO, DRO])
def test_an_aggregation_that_the_formula_fixes_is_refused(cls: type[RLVRModule]) -> None:
    own = cls().loss_options.aggregation
    assert cls(loss={"aggregation": own, "entropy_coef": 0.1}).loss_options == Loss(own, entropy_coef=0.1)  # type: ignore[arg-type]
    said = rf"^model\.loss\.aggregation: {cls.__name__} is defined with {own}, not token_mean; leave it out$"
    with pytest.raises(UserError, match=said):
        cls(loss=Loss("token_mean"))


def test_only_a_loss_that_counts_sequences_may_count_those_of_an_episode() -> None:
    assert GRPO(loss=Loss("constant", "sequence")).loss_options.normalise_by == "sequence"
    with pytest.raises(UserError, match=r"^model\.loss\.normalise_by: token_mean counts no sequences"):
        DAPO(loss={"normalise_by": "sequence"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^model\.loss\.normalise_by: GSPO weighs whole episodes"):
        GSPO(loss={"normalise_by": "sequence"})  # type: ignore[arg-type]


def sizes(module: RLVRModule, group_size: int = 4) -> None:
    rollout = RolloutCallback(group_size, engine="hf")
    plan = plan_without_trainer(rollout, module, 4)
    check_settings(rollout, module, plan)
    log_sizes(rollout, module, plan)


@pytest.mark.parametrize("cls", [GPG, AAPO, Reinforce])
def test_a_loss_without_a_ratio_warns_of_several_updates(
    cls: type[RLVRModule], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:

    with caplog.at_level("INFO", "lit_rlvr"):
        sizes(cls())
        assert "has no ratio" not in caplog.text
        for options in ({"updates_per_rollout": 2}, {"epochs_per_rollout": 2}):
            caplog.clear()
            sizes(cls(**options))
            assert f"{cls.__name__} has no ratio" in caplog.text


OUTSIDE = {
    "clip_low": (GRPO, [-0.5, 1.5], [0, 1]),
    "clip_high": (DAPO, [-0.1, math.inf], [0, 3]),
    "ratio_cap": (CISPO, [0.9], [1, 100]),
    "dual_clip": (GSPO, [1, -3, math.inf], [3]),
    "gamma": (APMPO, [-0.1], [0]),
    "schedule.delta": (APMPO, [0], [1e-6]),
    "lr": (GRPO, [-1e-6, math.inf], [0, 1]),
    "updates_per_rollout": (GRPO, [0], [1]),
    "kl.reference_update_every": (AAPO, [0], [1]),
    "optim.max_skipped_steps": (GRPO, [-1], [0]),
    "loss.entropy_coef": (GRPO, [math.inf], [-0.01, 0.01]),
    "optim.betas": (GRPO, [(0.9, 1.0), (-0.1, 0.9)], [(0, 0.9)]),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_option_outside_its_range_is_refused(name: str) -> None:
    cls, outside, inside = OUTSIDE[name]
    group, _, field = name.partition(".")
    for value in outside:
        with pytest.raises(UserError, match=rf"model\.{name}.* must lie in [\[(].*, .*[\])]$"):
            cls(**{group: {field: value} if field else value})
    for value in inside:
        cls(**{group: {field: value} if field else value})


def test_a_group_of_one_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UserError, match="group_size"):
        sizes(GRPO(advantage=AGRAE(base="dr_grpo")), group_size=1)
    sizes(Reinforce(), group_size=1)


def test_the_advantage_s_state_is_in_the_checkpoint(tmp_path: Path) -> None:
    c = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    modules = [GRPO(advantage=AGRAE(omega_scope="ema")) for _ in range(2)]
    for module in modules:
        module.policy = Policy(tiny_llama(), (0,))
        trained = SimpleNamespace(
            datamodule=None, state=SimpleNamespace(fn="fit"), optimizers=[module._build_optimizer()]
        )
        module.trainer = trained  # type: ignore[assignment]
    modules[0].estimate(GroupBatch(c, c))
    checkpoint: dict[str, Any] = {}
    modules[0].on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "checkpoint")
    modules[1].on_load_checkpoint(torch.load(tmp_path / "checkpoint", weights_only=True))
    later = GroupBatch(1 - c, 1 - c)
    assert modules[1].estimate(later)[1] == modules[0].estimate(later)[1]
    assert modules[1].estimate(later)[1]["omega"] != GRPO(advantage="agrae").estimate(later)[1]["omega"]


def test_apmpo_logs_what_it_adapts() -> None:
    r = torch.tensor(random_case(0).arrays["rewards"])
    _, metrics = APMPO().estimate(GroupBatch(r, r))
    mu, sigma = r.mean(), r.std(correction=0)
    assert metrics["p"] == pytest.approx(float((-0.8 * mu).exp()))
    assert metrics["fss"] == pytest.approx(float(mu / (sigma + 1e-6)))
    assert metrics["eps_ada"] == pytest.approx(float(0.2 + 0.2 * torch.tanh(mu / (sigma + 1e-6))))
    _, metrics = APMPO(schedule={"statistics": "group"}).estimate(GroupBatch(r, r))
    assert metrics["p"] == pytest.approx(float((-0.8 * r.mean(1)).exp().mean()))


@pytest.mark.parametrize(("factor", "warned"), [(100.0, True), (1.5, False)])
def test_a_cpu_that_emulates_bfloat16_is_warned_of(
    factor: float, warned: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_rlvr.rollout.preflight.sizes.bf16_slowdown", lambda: factor)
    rollout = RolloutCallback(engine="hf")
    with caplog.at_level("WARNING", "lit_rlvr"):
        module = GRPO()
        log_sizes(rollout, module, plan_without_trainer(rollout, module, 4))
        assert not caplog.messages
        log_sizes(rollout, module, plan_without_trainer(rollout, module, 4, precision="bf16-mixed"))
    assert ("100 times slower than in float32; use --trainer.precision 32-true" in caplog.text) is warned


def test_aapo_keeps_what_its_advantage_declares() -> None:
    class Pooled(AAPOAdvantage):
        reference_completions = ReferenceCompletions("pool", 4)

    assert AAPO(advantage=Pooled()).reference_completions == ReferenceCompletions("pool", 4)
    with pytest.raises(UserError, match=r"model\.reference_rollouts: pool, but the advantage declares"):
        AAPO(advantage=Pooled(), reference_rollouts="pool")
    with pytest.raises(UserError, match=r"model\.reference_pool_size: this advantage compares with no reference"):
        AAPO(advantage="grpo", reference_pool_size=16)
