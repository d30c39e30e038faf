"""Losses, corrections and advantages against TRL's own code, on random numbers in float64."""

import math
from importlib import import_module
from typing import Any, get_args

import numpy as np
import pytest
import torch
from slow_loops import random_case
from torch import Tensor

from lit_rlvr.algorithms import CISPO, DAPO, GRPO, GSPO, DrGRPO, RLVRModule
from lit_rlvr.commands.check.replay import read_batch, replay
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import ImportanceCorrection, importance_weights, log_ratio, masked_mean, vocabulary_divergence
from lit_rlvr.options import Importance


def trl() -> Any:
    """Import TRL's functions when a test runs: they take half of the imports of all tests' collection."""
    return import_module("lit_rlvr.conformance.trl")


def sampled_elsewhere(seed: int) -> dict[str, np.ndarray]:
    """A batch whose engine's log-probabilities differ from the trainer's by little, and here and there by much."""
    arrays = random_case(seed, shaped=True, on_policy=True).arrays
    rng = np.random.default_rng(seed)
    shape = arrays["logp"].shape
    arrays["logp"] = arrays["logp"] + rng.normal(0, 0.3, shape)
    off = rng.normal(0, 0.4, shape) + (rng.random(shape) < 0.05) * rng.normal(0, 8, shape)
    return arrays | {"rollout_logp": arrays["old_logp"] - off}


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}


def their_loss(
    arrays: dict[str, np.ndarray], advantages: np.ndarray, ratio: Tensor | None = None, **options: Any
) -> tuple[float, np.ndarray]:
    """TRL's loss and its gradient with respect to the log-probabilities."""
    t = tensors(arrays)
    logp = t["logp"].clone().requires_grad_(True)
    others = {"ref_per_token_logps": t["ref_logp"], "importance_sampling_ratio": ratio}
    if "rollout_logp" in t:
        others["sampling_per_token_logps"] = t["rollout_logp"]
    a, count = torch.from_numpy(advantages), int(t["mask"].sum())
    loss = trl().compute_loss(logp, t["old_logp"], a, t["mask"], count, 1, t.get("entropy"), others, **options)
    loss.backward()
    return loss.item(), logp.grad.numpy()


CLEAN = {"use_bias_correction_kl": False}
LOSSES: list[tuple[type[RLVRModule], dict[str, Any], dict[str, Any]]] = [
    (GRPO, {}, {}),
    (GRPO, {"clip_high": 0.28, "kl": {"coef": 0.1}}, {"epsilon_high": 0.28, "beta": 0.1} | CLEAN),
    (GRPO, {"kl": {"coef": 0.1, "bias_correction": True}}, {"beta": 0.1}),
    (GRPO, {"dual_clip": 1.5}, {"delta": 1.5}),  # two-sided
    (DAPO, {"dual_clip": 4.0}, {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 4.0}),
    (DrGRPO, {"kl": {"coef": 0.1}}, {"loss_type": "dr_grpo", "beta": 0.1} | CLEAN),
    (CISPO, {}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    (GSPO, {"clip_low": 0.2, "clip_high": 0.2}, {"importance_sampling_level": "sequence"}),
    (GRPO, {"importance": {"off_policy_threshold": 0.2}}, {"off_policy_mask_threshold": 0.2}),
    (GSPO, {"clip_low": 0.2, "clip_high": 0.2, "importance": {"off_policy_threshold": 0.2}},
     {"importance_sampling_level": "sequence", "off_policy_mask_threshold": 0.2}),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "ours", "theirs"), LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_shared_loss_has_their_value_and_gradient(
    cls: type[RLVRModule], ours: dict[str, Any], theirs: dict[str, Any], seed: int
) -> None:
    check(random_case(seed, shaped=True).arrays, cls(**ours), theirs)


def check(arrays: dict[str, np.ndarray], module: RLVRModule, theirs: dict[str, Any]) -> None:
    found = replay(arrays, {"x": module})
    loss, gradient = their_loss(arrays, found["x/advantages"], **theirs)
    assert float(found["x/loss"]) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(found["x/dlogp"], gradient, rtol=1e-9, atol=1e-16)
    assert (gradient != 0).any()


MODES = ("token_truncate", "sequence_truncate", "token_mis", "sequence_mis")
BOUNDS = [(3.0, None), (1.2, 0.8), (None, 0.5), (2.0, 0.0)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("high", "low"), BOUNDS)
def test_weights_of_a_correction_give_their_loss(mode: Any, high: float | None, low: float | None) -> None:
    """`test_every_correction_is_that_of_a_slow_loop` has the weights themselves."""
    arrays = sampled_elsewhere(3)
    batch = read_batch(arrays)
    assert batch.rollout_logp is not None
    tokens, rows = importance_weights(batch.old_logp, batch.rollout_logp, batch.mask, mode, high, low)
    ratio = rows[:, None] if mode.startswith("sequence") else tokens
    importance = {"correction": mode, "cap": high, "floor": low, "off_policy_threshold": 0.3}
    theirs = {"use_vllm": True, "ratio": ratio, "off_policy_mask_threshold": 0.3}
    check(arrays, GRPO(importance=importance), theirs)
    theirs |= {"importance_sampling_level": "sequence"}
    module = GSPO(clip_low=0.2, clip_high=0.2, importance=importance)
    if mode.startswith("sequence"):
        return check(arrays, module, theirs)
    # a stated difference: the bounded geometric mean of a row's ratios here, there the mean of the bounded ratios
    found = replay(arrays, {"x": module})
    _, gradient = their_loss(arrays, found["x/advantages"], **theirs)
    mean = masked_mean(ratio, batch.mask)[:, None].numpy()
    np.testing.assert_allclose(found["x/dlogp"] * mean, gradient * rows[:, None].numpy(), rtol=1e-9, atol=1e-16)
    assert not np.allclose(found["x/dlogp"], gradient, rtol=1e-5)


def slow_weights(d: list[float], c: Importance) -> tuple[list[float], float]:
    """The weights of one sequence with log-ratios `d`: of its tokens, and of the whole."""
    level, _, how = c.mode.partition("_")
    high = math.inf if c.cap is None else c.cap

    def weight(w: float, how: str) -> float:
        low = c.floor if c.floor is not None else 1 / high if how == "reject" else 0.0
        if how == "truncate":
            return min(max(w, low), high)
        return (w if how == "mis" else 1.0) if low <= w <= high else 0.0

    middle = math.exp(sum(d) / len(d)) if d else 1.0
    whole = math.prod(math.exp(v) for v in d)
    if level == "none":
        tokens, row = [1.0] * len(d), 1.0
    elif level == "token":
        tokens, row = [weight(math.exp(v), how) for v in d], weight(middle, "mis" if how == "mis" else "truncate")
    else:
        row = weight(whole if level == "sequence" else middle, how)
        tokens = [row] * len(d)
    veto = c.veto is not None and any(math.exp(v) < c.veto for v in d)
    return ([0.0] * len(d), 0.0) if veto else (tokens, row)


@pytest.mark.parametrize("veto", [None, 0.05])
@pytest.mark.parametrize(("high", "low"), BOUNDS)
@pytest.mark.parametrize(
    "mode",
    [
        "none",
        "token_truncate",
        "token_mis",
        "token_reject",
        "sequence_truncate",
        "sequence_mis",
        "sequence_reject",
        "geometric_reject",
    ],
)
def test_every_correction_is_that_of_a_slow_loop(mode: Any, high: Any, low: Any, veto: float | None) -> None:
    batch = read_batch(sampled_elsewhere(4))
    assert batch.rollout_logp is not None
    correction = Importance(mode, high, low, veto)
    tokens, rows = importance_weights(batch.old_logp, batch.rollout_logp, batch.mask, mode, high, low, veto)
    d = log_ratio(batch.old_logp, batch.rollout_logp, batch.mask)
    assert correction.drops == (mode.endswith(("mis", "reject")) or veto is not None)
    for i, used in enumerate(batch.mask):
        expected, row = slow_weights(d[i][used].tolist(), correction)
        assert tokens[i][used].tolist() == pytest.approx(expected, rel=1e-9)
        if used.any():
            assert rows[i].item() == pytest.approx(row, rel=1e-9)


@pytest.mark.parametrize(("high", "low"), [*BOUNDS, (None, None), (None, 0.0)])
@pytest.mark.parametrize("mode", get_args(ImportanceCorrection))
def test_a_bounded_correction_follows_the_ratio_and_stays_below_a_bound(mode: Any, high: Any, low: Any) -> None:
    correction = Importance(mode, high, low)
    d = torch.linspace(-40, 40, 81, dtype=torch.float64)[:, None]
    tokens, _ = importance_weights(d, torch.zeros_like(d), torch.ones_like(d, dtype=torch.bool), mode, high, low)
    assert correction.is_bounded == bool(tokens.max() < 10 and len(tokens.unique()) > 1)


def test_bounds_that_contradict_one_another_are_refused_in_one_line() -> None:
    for options, said in (
        (
            {"importance": {"correction": "token_mask"}},
            r"^model\.importance\.correction: give one of 'none', [^\n]*mask'$",
        ),
        ({"importance": {"cap": 0.0}}, r"model\.importance\.cap"),
        ({"importance": {"floor": 2.0}}, r"model\.importance\.floor: 2.0 must lie below cap=2.0"),
        ({"importance": {"veto": -1.0}}, r"importance\.veto: -1.0 must lie in \(0, 1\)"),
        ({"importance": {"veto": 1.5}}, r"importance\.veto: 1.5 must lie in \(0, 1\)"),
        (
            {"importance": {"correction": "token_mis", "cap": 0.5, "veto": 0.6}},
            "0.6 must not lie above",
        ),
        ({"importance": {"off_policy_threshold": 0.0}}, "off_policy_threshold"),
        (
            {"importance": {"prox_logp_method": "linear"}},
            "prox_logp_method: give one of 'recompute', 'loglinear', not 'linear'",
        ),
    ):
        with pytest.raises(UserError, match=said):
            GRPO(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("cap", [1.0, 0.99, 0.5, 1e-3])
@pytest.mark.parametrize("mode", get_args(ImportanceCorrection))
def test_a_correction_that_would_keep_no_ratio_is_refused_with_the_remedy(mode: Any, cap: float) -> None:
    if not mode.endswith("_reject"):
        GRPO(importance={"correction": mode, "cap": cap})
        return
    said = f"importance.cap: {cap} leaves nothing, because {mode} takes 1 / cap = .*; set it above 1, or set "
    with pytest.raises(UserError, match=said):
        GRPO(importance={"correction": mode, "cap": cap})
    for options in ({"floor": cap / 2}, {"cap": 1.01}, {"cap": None}):
        GRPO(importance={"correction": mode, "cap": cap} | options)


def test_entropies_and_masks_of_single_tokens_are_replayed() -> None:
    arrays = random_case(5, shaped=True).arrays
    rng = np.random.default_rng(5)
    entropy, chosen = rng.uniform(0, 3, arrays["logp"].shape), rng.random(arrays["logp"].shape) < 0.5
    plain, bonus = (replay(arrays | {"entropy": entropy}, {"x": GRPO(loss={"entropy_coef": c})}) for c in (0.0, 0.1))
    mask = arrays["mask"]
    share = mask / np.maximum(mask.sum(1, keepdims=True), 1) / len(mask)
    assert float(bonus["x/loss"]) == pytest.approx(float(plain["x/loss"]) - 0.1 * (entropy * share).sum())
    some = replay(arrays | {"objective_mask": chosen}, {"x": GRPO(kl={"coef": 0.1})})
    every, kl = (
        replay(arrays, {"x": GRPO(kl={"coef": 0.1})}),
        replay(arrays | {"objective_mask": chosen & False}, {"x": GRPO(kl={"coef": 0.1})}),
    )
    np.testing.assert_allclose(some["x/dlogp"], np.where(chosen, every["x/dlogp"], kl["x/dlogp"]), rtol=1e-12)
    # TRL's top_entropy_quantile is such a mask: its tokens of low entropy count in the normaliser alone
    level = np.quantile(entropy[mask], 0.8)
    found = replay(arrays | {"objective_mask": (entropy >= level) & mask}, {"x": GRPO()})
    trainer = {"top_entropy_quantile": 0.2, "get_high_entropy_mask": lambda e, m, q: (e >= level) & m.bool()}
    loss, gradient = their_loss(arrays | {"entropy": entropy}, found["x/advantages"], **trainer)
    assert float(found["x/loss"]) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(found["x/dlogp"], gradient, rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0])
def test_the_divergence_from_a_teacher_is_gkds_and_over_the_likeliest_tokens_sdpos_with_a_tail(beta: float) -> None:
    from trl.experimental.gkd import GKDTrainer
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss

    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 5, 31, dtype=torch.float64)
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="none").sum(-1)
    torch.testing.assert_close(vocabulary_divergence(student, teacher, beta), theirs)
    theirs = compute_topk_self_distillation_loss(
        student, teacher, distillation_topk=7, distillation_alpha=beta, distillation_add_tail=True
    )
    torch.testing.assert_close(vocabulary_divergence(student, teacher, beta, 7), theirs)
