"""Every loss and its gradient against slow loops, and against itself however the batch is cut."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from mpmath import mpf
from slow_loops import (
    SLOW,
    Case,
    Term,
    cispo_terms,
    clip_cov_terms,
    clipped_terms,
    dppo_terms,
    dro_terms,
    fipo_terms,
    gmpo_terms,
    gspo_terms,
    gspo_token_terms,
    kl_cov_terms,
    kl_terms,
    loss_and_gradient,
    luspo_terms,
    m2po_terms,
    plain_terms,
    power_terms,
    random_case,
    sapo_terms,
    slow_divergence,
    top_entropy_terms,
    topr_terms,
    vespo_terms,
    worst_error,
)

from lit_rlvr.advantages import GroupBatch, GRPOAdvantage
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
from lit_rlvr.commands.check.replay import frozen_inputs, read_batch, replay
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.objectives import LossInputs, discounted_sum, log_power_mean, loglinear_old, vocabulary_divergence
from lit_rlvr.options import Loss

AGGREGATIONS = ("sequence_mean", "token_mean", "group_token_mean", "constant", "token_sum")
CASES = {
    "on-policy": dict(seed=2, on_policy=True),
    "large group": dict(seed=3, shaped=True, size=5),
}
SAMPLED_ELSEWHERE = {"near": dict(seed=5, sampled=0.05), "far": dict(seed=6, shaped=True, sampled=0.6)}
Advantages = list[mpf]
Losses = Callable[[Case, Advantages], list[Term]]


def apmpo(
    statistics: str = "batch",
    source: str = "rewards",
    schedule: str = "exp",
    squash: str = "tanh",
    fss: str = "ratio",
    adaptive_lower: bool = False,
    power: float | None = None,
    gamma: float = 0.8,
    eps_min: float = 0.2,
    eps_max: float = 0.4,
    kl: float = 0.001,
    dual: float | None = None,
) -> Losses:
    """APMPO's power and clip as the paper writes them, one number per row."""

    def terms(case: Case, a: Advantages) -> list[Term]:
        rewards = case.arrays[source].tolist()
        powers, low, high = [], [], []
        for i in range(len(case.mask)):
            used = rewards[i // case.group_size] if statistics == "group" else [v for g in rewards for v in g]
            mu = math.fsum(used) / len(used)
            sigma = math.sqrt(math.fsum((v - mu) ** 2 for v in used) / len(used))
            score = {"ratio": mu / (sigma + 1e-6), "mean": mu, "inverse_std": 1 / (sigma + 1e-6)}[fss]
            if squash == "tanh":
                eps = eps_min + (eps_max - eps_min) * math.tanh(score)
            else:
                eps = min(max(eps_min + (eps_max - eps_min) * score, eps_min), eps_max)
            powers.append(
                power if power is not None else math.exp(-gamma * mu) if schedule == "exp" else 1 - gamma * mu
            )
            low.append(eps if adaptive_lower else 0.2)
            high.append(eps)
        return [power_terms(case, a, powers, low, high, dual), kl_terms(case, "sequence_mean", kl)]

    return terms


@dataclass(frozen=True)
class Setting:
    """An algorithm with its options, and its loss by slow loops."""

    algorithm: type[RLVRModule]
    loss: Losses
    options: dict[str, Any] = field(default_factory=dict)
    advantage: str = "grpo"

    def module(self) -> RLVRModule:
        return self.algorithm(**self.options)


LOSSES = {
    "GRPO": Setting(GRPO, lambda c, a: [clipped_terms(c, a, "sequence_mean", 0.2, 0.2)]),
    "GRPO with KL": Setting(
        GRPO,
        lambda c, a: [clipped_terms(c, a, "sequence_mean", 0.1, 0.3), kl_terms(c, "sequence_mean", 0.04)],
        dict(kl={"coef": 0.04}, clip_low=0.1, clip_high=0.3),
    ),
    "GRPO with dual clip": Setting(
        GRPO,
        lambda c, a: [clipped_terms(c, a, "sequence_mean", 0.2, 0.2, 3.0)],
        dict(dual_clip=3.0, advantage="agrae"),
        advantage="agrae",
    ),
    "DAPO": Setting(DAPO, lambda c, a: [clipped_terms(c, a, "token_mean", 0.2, 0.28)]),
    "DAPO with KL": Setting(
        DAPO,
        lambda c, a: [clipped_terms(c, a, "token_mean", 0.2, 0.28), kl_terms(c, "token_mean", 0.1)],
        dict(kl={"coef": 0.1}, advantage="hard_focused"),
        advantage="hard_focused",
    ),
    "DrGRPO": Setting(DrGRPO, lambda c, a: [clipped_terms(c, a, "constant", 0.2, 0.2)], advantage="dr_grpo"),
    "DrGRPO with KL": Setting(
        DrGRPO,
        lambda c, a: [clipped_terms(c, a, "constant", 0.2, 0.2), kl_terms(c, "constant", 0.1)],
        dict(kl={"coef": 0.1}),
        advantage="dr_grpo",
    ),
    "GPG": Setting(GPG, lambda c, a: [plain_terms(c, a, "token_mean")], advantage="gpg"),
    "AAPO": Setting(AAPO, lambda c, a: [plain_terms(c, a, "group_token_mean")], advantage="aapo"),
    "AAPO with KL": Setting(
        AAPO,
        lambda c, a: [plain_terms(c, a, "group_token_mean"), kl_terms(c, "group_token_mean", 0.1)],
        dict(kl={"coef": 0.1}),
        advantage="aapo",
    ),
    "Reinforce": Setting(Reinforce, lambda c, a: [plain_terms(c, a, "token_mean")], advantage="reinforce"),
    "Reinforce by RLOO": Setting(
        Reinforce, lambda c, a: [plain_terms(c, a, "token_mean")], dict(advantage="rloo"), advantage="rloo"
    ),
    "GRPOLead": Setting(GRPOLead, lambda c, a: [clipped_terms(c, a, "sequence_mean", 0.2, 0.2)], advantage="grpo_lead"),
    "GMPO": Setting(GMPO, lambda c, a: [gmpo_terms(c, a, 0.4, 0.4)]),
    "GMPO with KL and dual clip": Setting(
        GMPO,
        lambda c, a: [gmpo_terms(c, a, 0.2, 0.5, 3.0), kl_terms(c, "sequence_mean", 0.1)],
        dict(kl={"coef": 0.1}, dual_clip=3.0, clip_low=0.2, clip_high=0.5),
    ),
    "GSPO": Setting(GSPO, lambda c, a: [gspo_terms(c, a, 3e-4, 4e-4)]),
    "GSPO wide": Setting(
        GSPO,
        lambda c, a: [gspo_terms(c, a, 0.2, 0.3, 3.0), kl_terms(c, "sequence_mean", 0.1)],
        dict(clip_low=0.2, clip_high=0.3, dual_clip=3.0, kl={"coef": 0.1}),
    ),
    "GSPOToken": Setting(GSPOToken, lambda c, a: [gspo_token_terms(c, a, "sequence_mean", 3e-4, 4e-4)]),
    "GSPOToken wide": Setting(
        GSPOToken,
        lambda c, a: [gspo_token_terms(c, a, "token_mean", 0.2, 0.3, 3.0), kl_terms(c, "token_mean", 0.1)],
        dict(clip_low=0.2, clip_high=0.3, dual_clip=3.0, kl={"coef": 0.1}, loss={"aggregation": "token_mean"}),
    ),
    "CISPO": Setting(CISPO, lambda c, a: [cispo_terms(c, a, "token_mean", 5.0)]),
    "CISPO capped": Setting(
        CISPO, lambda c, a: [cispo_terms(c, a, "token_mean", 1.2, 1.1)], dict(ratio_cap=1.2, dual_clip=1.1)
    ),
    "CISPO with a floor": Setting(
        CISPO,
        lambda c, a: [cispo_terms(c, a, "token_mean", 1.3, ratio_floor=0.8)],
        dict(ratio_cap=1.3, ratio_floor=0.8),
    ),
    "SAPO": Setting(SAPO, lambda c, a: [sapo_terms(c, a, "sequence_mean", 1.0, 1.05)]),
    "SAPO gentle": Setting(
        SAPO,
        lambda c, a: [sapo_terms(c, a, "token_mean", 0.8, 0.5)],
        dict(tau_pos=0.8, tau_neg=0.5, loss={"aggregation": "token_mean"}),
    ),
    "LUSPO": Setting(LUSPO, lambda c, a: [luspo_terms(c, a, 2e-3, 2.5e-3)]),
    "LUSPO wide": Setting(
        LUSPO,
        lambda c, a: [luspo_terms(c, a, 0.2, 0.3), kl_terms(c, "sequence_mean", 0.1)],
        dict(clip_low=0.2, clip_high=0.3, kl={"coef": 0.1}),
    ),
    "VESPO": Setting(VESPO, lambda c, a: [vespo_terms(c, a, 2, 3, 3, 2)]),
    "VESPO flat": Setting(
        VESPO,
        lambda c, a: [vespo_terms(c, a, 0.5, 0.1, 0, 0.4)],
        dict(k_pos=0.5, lambda_pos=0.1, k_neg=0.0, lambda_neg=0.4),
    ),
    "DPPO": Setting(DPPO, lambda c, a: [dppo_terms(c, a, "tv", 0.2, 0.2)]),
    "DPPO by KL": Setting(DPPO, lambda c, a: [dppo_terms(c, a, "kl", 0.05, 0.05)], dict(divergence="kl")),
    "DPPO of prime-rl": Setting(
        DPPO,
        lambda c, a: [dppo_terms(c, a, "tv", 0.1, 0.3, 1e-3)],
        dict(delta_low=0.1, delta_high=0.3, drift_coef=1e-3),
    ),
    "ClipCov": Setting(ClipCov, lambda c, a: [clip_cov_terms(c, a, 0.2, 0.2, 2e-4, 1, 5)]),
    "ClipCov of many": Setting(
        ClipCov,
        lambda c, a: [clip_cov_terms(c, a, 0.2, 0.28, 0.1, -0.5, 2)],
        dict(clip_share=0.1, covariance_low=-0.5, covariance_high=2.0, clip_high=0.28),
    ),
    "KLCov": Setting(KLCov, lambda c, a: [kl_cov_terms(c, a, 2e-4, 1.0)]),
    "KLCov of many": Setting(
        KLCov, lambda c, a: [kl_cov_terms(c, a, 0.2, 0.5)], dict(penalty_share=0.2, penalty_coef=0.5)
    ),
    "M2PO": Setting(M2PO, lambda c, a: [m2po_terms(c, a, 0.04)]),
    "M2PO strict": Setting(M2PO, lambda c, a: [m2po_terms(c, a, 1e-3)], dict(threshold=1e-3)),
    "FIPO": Setting(FIPO, lambda c, a: [fipo_terms(c, a)]),
    "FIPO both ways": Setting(
        FIPO,
        lambda c, a: [fipo_terms(c, a, 0.5, 1.5, 2, 1.1, 1.3)],
        dict(influence_low=0.5, influence_high=1.5, half_life=2.0, safe_ratio=1.1, dual_clip=1.3),
    ),
    "FIPO without a dual clip": Setting(
        FIPO,
        lambda c, a: [fipo_terms(c, a, low=0.0, dual=None)],
        dict(dual_clip=None, influence_low=0.0, loss={"aggregation": "token_mean"}),
    ),
    "TOPR": Setting(TOPR, lambda c, a: [topr_terms(c, a)], advantage="dr_grpo"),
    "TOPR by rewards": Setting(
        TOPR,
        lambda c, a: [topr_terms(c, a, "token_mean")],
        dict(advantage="reinforce", loss={"aggregation": "token_mean"}),
        advantage="reinforce",
    ),
    "DRO": Setting(DRO, lambda c, a: [dro_terms(c, a, 0.05)], advantage="dr_grpo"),
    "DRO without a penalty": Setting(
        DRO,
        lambda c, a: [dro_terms(c, a, 0.0), kl_terms(c, "token_sum", 0.1)],
        dict(beta=0.0, kl={"coef": 0.1}),
        advantage="dr_grpo",
    ),
    "GRPO on uncertain tokens": Setting(
        GRPO,
        lambda c, a: [top_entropy_terms(c, a, "sequence_mean", 0.2), kl_terms(c, "sequence_mean", 0.1)],
        dict(loss={"top_entropy_quantile": 0.2}, kl={"coef": 0.1}),
    ),
    "APMPO": Setting(APMPO, apmpo()),
    "APMPO per group": Setting(APMPO, apmpo("group"), dict(schedule={"statistics": "group"})),
    "APMPO from correct": Setting(APMPO, apmpo(source="correct"), dict(schedule={"statistics_from": "correct"})),
    "APMPO linear": Setting(
        APMPO, apmpo(schedule="linear", gamma=0.6), dict(schedule={"power_schedule": "linear"}, gamma=0.6)
    ),
    "APMPO without tanh": Setting(
        APMPO,
        apmpo("group", squash="none", eps_min=0.1, eps_max=0.3),
        dict(schedule={"squash": "none", "statistics": "group"}, eps_min=0.1, eps_max=0.3),
    ),
    "APMPO by mean": Setting(APMPO, apmpo(fss="mean"), dict(schedule={"fss": "mean"})),
    "APMPO by deviation": Setting(
        APMPO, apmpo("group", fss="inverse_std"), dict(schedule={"fss": "inverse_std", "statistics": "group"})
    ),
    "APMPO adaptive lower": Setting(APMPO, apmpo(adaptive_lower=True), dict(adaptive_lower=True)),
    "APMPO small power": Setting(APMPO, apmpo(power=1e-4, kl=0), dict(schedule={"power": 1e-4}, kl={"coef": 0.0})),
    "APMPO tiny power": Setting(APMPO, apmpo(power=1e-9), dict(schedule={"power": 1e-9})),
    "APMPO power 2": Setting(APMPO, apmpo(power=2.0), dict(schedule={"power": 2.0})),
    "APMPO dual clip": Setting(APMPO, apmpo(dual=3.0), dict(dual_clip=3.0)),
}
LOSSES |= {
    f"GRPO by {aggregation}": Setting(
        GRPO,
        lambda c, a, how=aggregation: [clipped_terms(c, a, how, 0.2, 0.2), kl_terms(c, how, 0.02)],
        dict(loss={"aggregation": aggregation}, kl={"coef": 0.02}),
    )
    for aggregation in AGGREGATIONS
}
LOSSES |= {
    f"GRPO with {estimator}": Setting(
        GRPO,
        lambda c, a, which=estimator: [
            clipped_terms(c, a, "sequence_mean", 0.2, 0.2),
            kl_terms(c, "sequence_mean", 0.1, which),
        ],
        dict(kl={"coef": 0.1, "estimator": estimator}),
    )
    for estimator in ("k1", "k2")
}
LOSSES |= {
    f"CISPO by {aggregation}": Setting(
        CISPO, lambda c, a, how=aggregation: [cispo_terms(c, a, how, 5.0)], dict(loss={"aggregation": aggregation})
    )
    for aggregation in AGGREGATIONS
}


def errors(name: str, case: Case) -> dict[str, float]:
    """Worst relative difference from the slow loops of loss, advantages and gradient."""
    setting = LOSSES[name]
    ours = replay(case.arrays, {"x": setting.module()})
    lists = {k: case.arrays[v].tolist() for k, v in dict(r="rewards", c="correct", s="reference_rewards").items()}
    lengths = case.arrays["mask"].sum(1).reshape(case.arrays["rewards"].shape).tolist()
    a = np.array(SLOW[setting.advantage](lengths=lengths, **lists))
    loss, gradient = loss_and_gradient(case, setting.loss(case, [mpf(float(v)) for v in a.flatten()]))
    assert all(v.dtype == np.float64 for v in ours.values())
    scale = float(np.abs(gradient).max()) * 1e-30
    return {
        "loss": worst_error(ours["x/loss"], np.array(loss), 1e-12),
        "advantages": worst_error(ours["x/advantages"], a),
        "dlogp": worst_error(ours["x/dlogp"], gradient, max(scale, 1e-30)),
    }


@pytest.mark.parametrize("beta", [0.0, 1e-3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 5, 40])
def test_the_divergence_over_a_vocabulary_is_the_slow_loops(beta: float, top_k: int | None) -> None:
    """With tokens left out, rows of padding, tokens of hardly any probability, and equal distributions."""
    rng = np.random.default_rng(derive_seed("divergence"))
    student, teacher = rng.normal(0, [[1], [8], [30], [3]], (2, 4, 37))
    student[:, [3, 20]] = teacher[:, [3, 20]] = -math.inf
    student[3] = teacher[3] + 2
    wanted = [float(slow_divergence([*s], [*t], beta, top_k)) for s, t in zip(student, teacher, strict=True)]
    padded = torch.from_numpy(np.pad(teacher, ((0, 0), (0, 5)), constant_values=50.0))
    for given, other, tolerance in (
        (torch.from_numpy(student), padded, 1e-12),
        (torch.from_numpy(student).float(), padded.float(), 1e-5),
    ):
        logits = given.requires_grad_()
        found = vocabulary_divergence(logits, other, beta, top_k)
        torch.testing.assert_close(
            found.double(), torch.tensor(wanted, dtype=torch.float64), rtol=tolerance, atol=tolerance
        )
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert gradient.isfinite().all()
        assert not gradient[:, [3, 20]].any()
        assert gradient[0].abs().max() > 1e-4 * beta
    whole = vocabulary_divergence(torch.from_numpy(student), torch.from_numpy(teacher), beta)
    assert (found <= whole + 1e-5).all(), "tokens taken together are at most as far apart"


@pytest.mark.parametrize("length", [1, 64, 150])
def test_a_discounted_sum_is_that_of_the_recurrence(length: int) -> None:
    values = torch.randn(2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slow, after = [], torch.zeros(2, dtype=torch.float64)
    for t in reversed(range(length)):
        after = values[:, t] + 0.9 * after
        slow.append(after)
    assert torch.allclose(discounted_sum(values, 0.9), torch.stack(slow[::-1], 1), rtol=1e-12)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_those_of_the_slow_loops(name: str, kind: str) -> None:
    found = errors(name, random_case(**CASES[kind]))
    assert max(found.values()) < 1e-6, found


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
@pytest.mark.parametrize("kind", [dict(seed=3, shaped=True), dict(seed=2, on_policy=True)])
def test_gspo_token_takes_advantages_of_tokens_as_the_slow_loop_does(kind: dict[str, Any], aggregation: Any) -> None:
    case = random_case(**kind)
    values = np.random.default_rng(derive_seed("advantages")).normal(size=case.arrays["mask"].shape)

    class OfTokens(GRPOAdvantage):
        needs_tokens = True

        def __call__(self, groups: GroupBatch) -> torch.Tensor:
            return torch.from_numpy(values)

    module = GSPOToken(advantage=OfTokens(), clip_low=0.2, clip_high=0.3, loss=Loss(aggregation))
    found = replay(case.arrays | {"turns": np.zeros(values.shape, dtype=int)}, {"x": module})
    a = [[mpf(float(v)) for v in row] for row in values]
    loss, gradient = loss_and_gradient(case, [gspo_token_terms(case, a, aggregation, 0.2, 0.3)])
    assert worst_error(found["x/loss"], np.array(loss), 1e-12) < 1e-9
    assert worst_error(found["x/dlogp"], gradient, float(np.abs(gradient).max()) * 1e-20) < 1e-6


@pytest.mark.parametrize("kind", CASES)
def test_gspo_token_is_gspo_with_one_advantage_for_each_completion(kind: str) -> None:
    arrays = random_case(**CASES[kind]).arrays
    found = replay(arrays, {name: cls(clip_low=0.2, clip_high=0.3) for name, cls in (("a", GSPO), ("b", GSPOToken))})
    assert float(found["a/loss"]) == pytest.approx(float(found["b/loss"]), rel=1e-12)
    np.testing.assert_allclose(found["a/dlogp"], found["b/dlogp"], rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("kind", SAMPLED_ELSEWHERE)
@pytest.mark.parametrize("name", [name for name, setting in LOSSES.items() if setting.algorithm.uses_rollout])
def test_a_ratio_to_the_sampler_is_that_of_the_slow_loops(name: str, kind: str) -> None:
    found = errors(name, random_case(**SAMPLED_ELSEWHERE[kind]))
    assert max(found.values()) < 1e-6, found


@pytest.mark.parametrize(
    ("name", "equal"),
    [
        ("KLCov", "rewards"),
        ("KLCov of many", "rewards"),
        ("ClipCov of many", "rewards"),
        ("GRPO on uncertain tokens", "entropy"),
        ("M2PO", "log-ratios"),
        ("M2PO strict", "log-ratios"),
    ],
)
def test_equal_values_at_a_threshold_are_chosen_as_by_the_slow_loops(name: str, equal: str) -> None:
    case = random_case(seed=0)
    if equal == "log-ratios":  # but one, which is large
        case.arrays["old_logp"] = np.round(case.arrays["old_logp"] * 2**20) / 2**20  # so that the others are exact
        case.arrays["rollout_logp"] = case.arrays["old_logp"] - 0.25
        case.arrays["rollout_logp"][0, 0] -= 100
    else:
        case.arrays[equal][:] = 1.0
    found = errors(name, Case(case.arrays, case.group_size, case.max_tokens))
    assert max(found.values()) < 1e-6, found


def inputs_of(module: RLVRModule, case: Case) -> LossInputs:
    batch = read_batch(case.arrays)
    return frozen_inputs(batch, module, batch.logp.clone().requires_grad_(True), module.estimate(batch.groups)[0])


def part(x: LossInputs, rows: torch.Tensor) -> LossInputs:
    values = {k: None if v is None else v[rows] for k, v in vars(x).items() if k != "logp"}
    return LossInputs(logp=x.logp.detach()[rows].requires_grad_(True), **values)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_sum_of_its_pieces_in_any_order(name: str) -> None:
    module = LOSSES[name].module()
    x = inputs_of(module, random_case(4, shaped=True))
    loss, stats = module.loss(x)
    loss.backward()
    rows = torch.randperm(len(x.logp), generator=torch.Generator().manual_seed(0))
    total, counts, gradient = 0.0, dict.fromkeys(stats, 0.0), torch.zeros_like(x.logp)
    for piece in rows.split([1, 5, 2, len(rows) - 8]):
        y = part(x, piece)
        partial, more = module.loss(y)
        partial.backward()
        total += partial.item()
        gradient[piece] = y.logp.grad
        counts = {k: counts[k] + float(more[k]) for k in counts}
    assert total == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(gradient, x.logp.grad, rtol=1e-12, atol=0)
    assert counts == pytest.approx({k: float(v) for k, v in stats.items()})


@pytest.mark.parametrize("name", LOSSES)
def test_numbers_in_masked_places_never_count(name: str) -> None:
    case = random_case(6, shaped=True)
    dirty = dict(case.arrays)
    for key, junk in (("logp", np.nan), ("old_logp", -np.inf), ("ref_logp", np.inf)):
        dirty[key] = np.where(case.arrays["mask"], case.arrays[key], junk)
    clean, found = (replay(arrays, {"x": LOSSES[name].module()}) for arrays in (case.arrays, dirty))
    for key in clean:
        np.testing.assert_array_equal(clean[key], found[key])
    assert (found["x/dlogp"][~case.arrays["mask"]] == 0).all()


def test_an_all_masked_batch_has_no_loss_and_no_gradient() -> None:
    case = random_case(8)
    arrays = case.arrays | {"mask": np.zeros_like(case.arrays["mask"])}
    for name, setting in LOSSES.items():
        found = replay(arrays, {"x": setting.module()})
        assert float(found["x/loss"]) == 0, name
        assert (found["x/dlogp"] == 0).all(), name


@pytest.mark.parametrize("cls", [GRPO, DAPO, AAPO, GMPO, APMPO, GSPO, CISPO])
def test_the_importance_weight_is_on_the_objective_alone(cls: type[RLVRModule]) -> None:
    module = cls(kl={"coef": 0.1}, loss={"entropy_coef": 0.2})
    x = inputs_of(module, random_case(11, shaped=True, on_policy=True))
    x.entropy = torch.rand(x.logp.shape, dtype=x.logp.dtype)
    objective = module.objective(x)[0].item()
    rest = module.loss(x)[0].item() - objective
    d = torch.where(x.mask, x.ref_logp - x.logp.detach(), 0.0)
    assert rest == pytest.approx(float(((0.1 * (d.exp() - d - 1) - 0.2 * x.entropy) * x.plain_weight).sum()))
    x.token_weight, x.row_weight = 3 * x.token_weight, 3 * x.row_weight
    assert module.loss(x)[0].item() == pytest.approx(3 * objective + rest)


def test_the_log_linear_old_policy_is_areals() -> None:
    """The numbers of AReaL's own test, and its formula with versions counted in optimizer steps."""
    behaviour, current = torch.tensor([-1.0, -2.0]).double(), torch.tensor([-1.5, -2.2]).double()
    assert loglinear_old(current, behaviour, torch.tensor([3, 1]), 1).tolist() == pytest.approx([-1.375, -2.1])
    for v_theta in range(3, 6):  # after one to three steps on the weights of version 2
        versions = torch.tensor([0, 2])
        slow = [
            b + (2 - v) / (v_theta - v) * (c - b)
            for b, c, v in zip(behaviour.tolist(), current.tolist(), versions.tolist(), strict=True)
        ]
        assert loglinear_old(current, behaviour, 2 - versions, v_theta - 2).tolist() == pytest.approx(slow)


def test_clip_counts_are_those_of_the_tokens_without_a_gradient() -> None:
    module = GRPO()
    x = inputs_of(module, random_case(9))
    loss, stats = module.loss(x)
    loss.backward()
    silent = (x.logp.grad == 0) & x.mask & (x.advantages != 0)
    clipped_low = int(stats["clip_low"])
    clipped_high = int(stats["clip_high"])
    assert clipped_low + clipped_high == int(silent.sum())
    assert clipped_low + clipped_high > 5
    assert clipped_low > 0
    assert clipped_high > 0


@pytest.mark.parametrize("cls", [GRPO, DAPO, GMPO, APMPO, GSPO, GRPOLead])
def test_a_ratio_of_exactly_one_at_a_clip_of_zero_keeps_its_gradient(cls: type[RLVRModule]) -> None:
    """On-policy the ratio is 1; a clip range of [1, 1] must not halve or lose the gradient."""
    case = random_case(10, on_policy=True)
    narrow = (
        dict(eps_low=0.0, eps_min=0.0, eps_max=0.0, kl={"coef": 0.0})
        if cls is APMPO
        else dict(clip_low=0.0, clip_high=0.0)
    )
    wide = dict(kl={"coef": 0.0}) if cls is APMPO else {}
    one, other = (replay(case.arrays, {"x": cls(**options)}) for options in (narrow, wide))
    np.testing.assert_allclose(one["x/dlogp"], other["x/dlogp"], rtol=1e-12)


@pytest.mark.parametrize("power", [0.0, 1e-12, 1e-6, 1e-3, 0.05, 0.4, 1.0, 3.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_power_mean_loses_no_digits(power: float, dtype: torch.dtype) -> None:
    from mpmath import mp

    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 6, generator=generator, dtype=dtype) * torch.tensor([[0.0], [1e-3], [0.5], [8.0]])
    values = values.to(dtype)
    mask = torch.tensor([[True] * 6, [True] * 5 + [False], [True] * 6, [True] * 3 + [False] * 3])
    found = log_power_mean(values, mask, torch.full((4,), power, dtype=dtype))
    for i in range(4):
        logs = [mpf(float(v)) for v, used in zip(values[i], mask[i], strict=True) if used]
        p = mpf(float(torch.tensor(power, dtype=dtype)))
        exact = sum(logs) / len(logs) if power == 0 else mp.log(sum(mp.exp(p * v) for v in logs) / len(logs)) / p
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        assert float(found[i]) == pytest.approx(float(exact), rel=tolerance, abs=tolerance * 1e-2)
