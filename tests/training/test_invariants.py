"""What a step does depends on its rollout, not on how it is cut, ordered or skipped.

Everything runs in the real flow: Trainer, RolloutCallback, HFEngine, Arithmetic and GRPO, and is compared
with a loop over single, unpadded sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import plain_logprobs, tiny_llama
from tiny_engines import Copying
from tiny_fit import T_MAX, MixedVersions, Recorder, assert_same, fit, naive_gradients
from torch import Tensor

from lit_rlvr.advantages import Advantage, GDPOAdvantage, GroupBatch
from lit_rlvr.advantages.base import standardised
from lit_rlvr.algorithms import DPPO, GRPO, M2PO, ClipCov, KLCov, RLVRModule
from lit_rlvr.datamodules.reading.stream import Cursor, PromptStream
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.turns import OnGroupDone
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, Rollout

AGGREGATIONS = pytest.mark.parametrize(
    "aggregation", ["sequence_mean", "token_mean", "group_token_mean", "constant", "token_sum"]
)


def tokens_of(rollout: Rollout) -> list[list[tuple[int, ...]]]:
    return [[c.token_ids for c in group] for group in rollout.completions]


# ---- cutting ----------------------------------------------------------------------------------------------


@pytest.mark.first_case_fast
@AGGREGATIONS
def test_a_step_is_the_loss_over_single_sequences(tiny_model_folder: Path, tmp_path: Path, aggregation: Any) -> None:
    _, seen = fit(tiny_model_folder, tmp_path, loss={"aggregation": aggregation})
    lengths = {len(c.token_ids) for group in seen.rollouts[0].completions for c in group}
    assert len(lengths) > 2, "normalisers only differ when lengths do"
    loss, expected = naive_gradients(seen.rollouts[0], range(6), aggregation)
    assert_same(seen.gradients[0], expected)
    assert seen.metrics[0]["train/loss"] == pytest.approx(loss, abs=1e-6)


@pytest.mark.first_case_fast
@AGGREGATIONS
def test_no_cut_changes_a_step(tiny_model_folder: Path, tmp_path: Path, aggregation: Any) -> None:
    _, whole = fit(
        tiny_model_folder, tmp_path, loss={"aggregation": aggregation}, compute={"tokens_per_microbatch": 10**6}
    )
    cuts = [(110, True), (230, False)]
    if aggregation == "token_mean":
        cuts += [(1, True), (260, True), (1, False), (10**6, False)]
    for budget, shared in cuts:
        _, cut = fit(
            tiny_model_folder,
            tmp_path,
            loss={"aggregation": aggregation},
            compute={"tokens_per_microbatch": budget, "shared_prefix": shared},
        )
        assert tokens_of(cut.rollouts[0]) == tokens_of(whole.rollouts[0])
        assert_same(cut.gradients[0], whole.gradients[0])
        assert cut.metrics[0]["train/loss"] == pytest.approx(whole.metrics[0]["train/loss"], abs=1e-6)
        for name in ("train/entropy", "train/engine_difference", "train/clip_low"):
            assert cut.metrics[0][name] == pytest.approx(whole.metrics[0][name], abs=1e-5), name


class OffEngine(HFEngine):
    """An engine whose log-probabilities are off by up to 1.5 nats, differently for each token."""

    exact = False
    probe_tolerance = 10.0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
    ) -> list[list[Completion]]:
        def off(completion: Completion) -> Completion:
            shifted = [v + 1.5 * ((7 * t) % 11 / 5 - 1) for t, v in enumerate(completion.logprobs)]
            return replace(completion, logprobs=tuple(shifted))

        return [[off(c) for c in group] for group in super().generate(prompts, sampling, seeds, done)]


CHOOSING: dict[str, tuple[type[RLVRModule], dict[str, Any], str | None]] = {
    "Clip-Cov": (ClipCov, dict(clip_share=0.2, covariance_low=-9.0, covariance_high=9.0), "train/clip_cov"),
    "KL-Cov": (KLCov, dict(penalty_share=0.3), "train/kl_cov"),
    "M2PO": (M2PO, dict(threshold=0.2), "train/m2po_dropped"),
    "uncertain tokens": (GRPO, dict(loss={"top_entropy_quantile": 0.3}), None),
}


@pytest.mark.first_case_fast
@pytest.mark.parametrize("name", CHOOSING)
def test_no_cut_changes_which_tokens_are_chosen(tiny_model_folder: Path, tmp_path: Path, name: str) -> None:
    """By thresholds over all tokens of each step, under the policy at the beginning of the iteration."""
    algorithm, options, metric = CHOOSING[name]

    def run(**more: Any) -> Recorder:
        engine = OffEngine() if name == "M2PO" else None
        return fit(
            tiny_model_folder,
            tmp_path,
            steps=2,
            algorithm=algorithm,
            engine=engine,
            lr=1e-3,
            updates_per_rollout=2,
            **options | more,
        )[1]

    whole = run(compute={"tokens_per_microbatch": 10**6})
    for more in (
        dict(compute={"tokens_per_microbatch": 1}),
        dict(compute={"tokens_per_microbatch": 230, "shared_prefix": False}),
    ):
        cut = run(**more)
        for one, other in zip(cut.gradients, whole.gradients, strict=True):
            assert_same(one, other, 1e-4)
        if metric:
            assert 0 < cut.metrics[0][metric] < 1
            assert cut.metrics[0][metric] == pytest.approx(whole.metrics[0][metric])
    if algorithm is GRPO:
        _, plain = fit(tiny_model_folder, tmp_path, steps=2, lr=1e-3, updates_per_rollout=2)
        with pytest.raises(AssertionError):
            assert_same(whole.gradients[0], plain.gradients[0], 0.1)


def test_the_order_of_prompts_changes_nothing(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, forward = fit(tiny_model_folder, tmp_path)
    take = PromptStream.take

    def backwards(self: PromptStream, count: int, cursor: Cursor) -> tuple[list[Prompt], Cursor]:
        prompts, after = take(self, count, cursor)
        return prompts[::-1], after

    monkeypatch.setattr(PromptStream, "take", backwards)
    _, reversed_ = fit(tiny_model_folder, tmp_path)
    assert tokens_of(reversed_.rollouts[0]) == tokens_of(forward.rollouts[0])[::-1]
    assert_same(reversed_.gradients[0], forward.gradients[0])


def test_a_failed_check_is_out_of_the_loss_and_of_its_groups_mean(tiny_model_folder: Path, tmp_path: Path) -> None:
    _, seen = fit(tiny_model_folder, tmp_path, rewards=["tiny_rewards.broken_for_some"], max_failure_rate=1.0)
    rollout = seen.rollouts[0]
    failed = torch.tensor([[s == "error" for s in group] for group in rollout.statuses])
    assert 0 < int(failed.sum()) < failed.numel()
    assert not rollout.mask.view(6, 4, -1)[failed].any() and not rollout.has_correct[failed].any()
    for p in range(6):
        judged = rollout.rewards[p][~failed[p]]
        if len(judged):
            assert float(rollout.rewards[p].mean()) == pytest.approx(float(judged.mean()), abs=1e-6)
            right = rollout.correct[p][~failed[p]]
            assert float(rollout.correct[p].mean()) == pytest.approx(float(right.mean()), abs=1e-6)
    assert_same(seen.gradients[0], naive_gradients(rollout, range(6))[1])


# ---- groups that say nothing ------------------------------------------------------------------------------


def test_skipped_groups_equal_groups_that_are_run(tiny_model_folder: Path, tmp_path: Path) -> None:
    _, skipping = fit(tiny_model_folder, tmp_path, prompts_per_rollout=12)
    assert 0 < int((skipping.rollouts[0].rewards.std(dim=1) == 0).sum()) < 12
    _, running = fit(tiny_model_folder, tmp_path, prompts_per_rollout=12, skip_nothing=True)
    assert_same(skipping.gradients[0], running.gradients[0])
    assert_same(skipping.gradients[0], naive_gradients(skipping.rollouts[0], range(12))[1])


@pytest.mark.parametrize("reward", ["first_token", "dead"])
def test_right_completions_are_imitated_too(tiny_model_folder: Path, tmp_path: Path, reward: str) -> None:
    """The mean over sequences of what -log p of the right ones is per token, also where all are right."""
    _, seen = fit(tiny_model_folder, tmp_path, rewards=[f"tiny_rewards.{reward}"], loss={"positive_nll_coef": 0.5})
    rollout, model = seen.rollouts[0], tiny_llama()
    loss, expected = naive_gradients(rollout, range(6))
    nll = torch.zeros(())
    for p, prompt in enumerate(rollout.prompts):
        for g, completion in enumerate(rollout.completions[p]):
            if rollout.correct[p, g]:
                nll = (
                    nll - plain_logprobs(model, prompt.token_ids, completion.token_ids, rollout.sampling)[0].mean() / 24
                )
    (0.5 * nll).backward()
    wanted = {name: p.grad + expected.get(name, 0) for name, p in model.named_parameters() if p.grad is not None}
    assert_same(seen.gradients[0], wanted)
    assert seen.metrics[0]["train/loss"] == pytest.approx(loss + 0.5 * float(nll.detach()), abs=1e-6)


def test_with_a_kl_term_dead_groups_are_run(tiny_model_folder: Path, tmp_path: Path) -> None:
    module, seen = fit(
        tiny_model_folder,
        tmp_path,
        steps=2,
        rewards=["tiny_rewards.dead"],
        kl={"coef": 0.5},
        lr=1e-2,
        optim={"weight_decay": 0.5},
    )
    assert all(float(g.abs().max()) < 1e-6 for g in seen.gradients[0].values()), "the KL term starts at 0"
    assert not any(p.requires_grad for p in module.reference.policy.parameters())
    start = dict(tiny_llama().named_parameters())
    assert any(not torch.equal(seen.weights[1][n], start[n]) for n in start)
    loss, expected = naive_gradients(
        seen.rollouts[1], range(6), weights=seen.weights[1], old_weights=seen.weights[1], kl_coef=0.5
    )
    assert_same(seen.gradients[1], expected, 1e-3)  # near 0 the KL term is a difference of almost equal numbers
    assert seen.metrics[1]["train/loss"] == pytest.approx(loss, abs=1e-6)


def test_an_iteration_without_signal_steps_with_zero_gradients(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW's momentum still moves the weights, exactly as if the groups had been run."""
    import tiny_rewards

    calls = 0

    def first_iteration_only(completion: Completion, sample: Any) -> Any:
        nonlocal calls
        calls += 1
        return (tiny_rewards.first_token if calls <= 24 else tiny_rewards.dead)(completion, sample)

    monkeypatch.setattr(tiny_rewards, "first_iteration_only", first_iteration_only, raising=False)
    module, seen = fit(tiny_model_folder, tmp_path, steps=3, rewards=["tiny_rewards.first_iteration_only"], lr=1e-3)
    assert (len(seen.gradients), module.trainer.global_step, module.updates) == (3, 3, 3)
    assert all(float(g.abs().max()) == 0 for g in seen.gradients[1].values())

    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    for step in range(3):
        for name, parameter in model.named_parameters():
            parameter.grad = seen.gradients[step][name]
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(dict(module.policy.model.named_parameters())[name], parameter, atol=1e-7, rtol=1e-6)
        assert not torch.equal(seen.weights[1][name], seen.weights[2][name]), "momentum moves on"


# ---- several updates a rollout ----------------------------------------------------------------------------


@pytest.mark.first_case_fast
@AGGREGATIONS
def test_two_updates_normalise_each_step_over_its_own_groups(
    tiny_model_folder: Path, tmp_path: Path, aggregation: Any
) -> None:
    _, seen = fit(tiny_model_folder, tmp_path, updates_per_rollout=2, loss={"aggregation": aggregation}, lr=1e-2)
    first, second = seen.minibatches
    assert sorted(first + second) == list(range(6)) and len(first) == len(second) == 3
    rollout = seen.rollouts[0]
    assert_same(seen.gradients[0], naive_gradients(rollout, first, aggregation)[1])
    # the second step: other weights, the ratio against the log-probabilities at rollout time, and its clip
    assert_same(seen.gradients[1], naive_gradients(rollout, second, aggregation, weights=seen.weights[1])[1], 1e-4)
    unmoved = naive_gradients(rollout, second, aggregation, weights=seen.weights[1], old_weights=seen.weights[1])[1]
    with pytest.raises(AssertionError):
        assert_same(seen.gradients[1], unmoved, 1e-2)


def test_epochs_go_over_the_whole_rollout_again(tiny_model_folder: Path, tmp_path: Path) -> None:
    module, seen = fit(tiny_model_folder, tmp_path, steps=4, updates_per_rollout=2, epochs_per_rollout=2)
    assert module.iteration == 1 and len(seen.rollouts) == 1
    parts = seen.minibatches
    assert sorted(parts[0] + parts[1]) == sorted(parts[2] + parts[3]) == list(range(6))
    assert parts[:2] == parts[2:]
    assert_same(seen.gradients[3], naive_gradients(seen.rollouts[0], parts[3], weights=seen.weights[3])[1], 1e-4)


# ---- importance weights -----------------------------------------------------------------------------------


def factors(high: float) -> dict[str | None, Any]:
    """The weights of a sequence's tokens by each correction, from (old (n,), engine (n,), ...)."""

    def clipped(d: Tensor) -> Tensor:
        return d.exp().clamp(max=high)

    def within(d: Tensor) -> Tensor:
        return ((d.exp() <= high) & (d.exp() >= 1 / high)).float()

    return {
        None: lambda old, engine, *_: clipped(old - engine),
        "geometric_reject": lambda old, engine, *_: within((old - engine).mean()) * torch.ones_like(old),
        "none": lambda old, *_: torch.ones_like(old),
        "sequence_truncate": lambda old, engine, *_: clipped((old - engine).sum()) * torch.ones_like(old),
    }


def test_a_ratio_to_the_sampler_is_ratio_times_correction(tiny_model_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(
        engine=OffEngine(), loss={"aggregation": "token_mean"}, steps=2, updates_per_rollout=2
    )
    unbounded = dict(clip_low=1.0, clip_high=1e9, importance={"correction": "token_truncate", "cap": 1e6})
    _, product = fit(tiny_model_folder, tmp_path, **options | unbounded)
    _, direct = fit(tiny_model_folder, tmp_path, algorithm=DPPO, delta_low=1.0, delta_high=1.0, **options)
    for one, other in zip(direct.gradients, product.gradients, strict=True):
        assert_same(one, other, 1e-4)


IS_DROPPED: dict[str, Any] = {
    "veto": lambda old, engine, logp, advantage: ((old - engine).exp() < 0.6).any(),
    "off_policy_threshold": lambda old, engine, logp, advantage: advantage < 0 and (engine - logp).mean() > 0.1,
}
"""An option -> whether it drops a sequence."""


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("mode", "method"),
    [
        (None, "recompute"),
        ("sequence_truncate", "recompute"),
        ("geometric_reject", "recompute"),
        *((mode, "recompute") for mode in IS_DROPPED),
        ("token_truncate", "loglinear"),
        ("none", "loglinear"),
    ],
)
def test_tokens_of_mixed_versions_have_the_gradient_of_decoupled_ppo(
    tiny_model_folder: Path, tmp_path: Path, mode: Any, method: Any
) -> None:
    """Each token's behaviour policy is the version that sampled it; the proximal one is the iteration's first."""
    high = 1.1
    limit = {"veto": 0.6, "off_policy_threshold": 0.1}
    options = {mode: limit[mode]} if mode in limit else {"correction": mode}
    seen = MixedVersions()
    fit(
        tiny_model_folder,
        tmp_path,
        engine=Copying(),
        recorder=seen,
        updates_per_rollout=2,
        importance={"cap": high, "prox_logp_method": method} | options,
    )
    rollout, age = seen.rollouts[0], 2.0 * seen.ages[0]  # in optimizer steps
    assert sum(len({*row[used].tolist()}) > 1 for row, used in zip(age, rollout.mask, strict=True)) > 5
    dropped: list[bool] = []

    def weights(*policies: Any) -> Tensor:
        by_mode = factors(high)
        correction = by_mode[mode if mode in by_mode else None]  # None: token_truncate, the default
        is_dropped = mode in IS_DROPPED and bool(IS_DROPPED[mode](*policies))
        dropped.append(is_dropped)
        return correction(*policies) * float(not is_dropped)

    for k, prompts in enumerate(seen.minibatches):
        alpha = age / (age + k) if k and method == "loglinear" else None
        _, expected = naive_gradients(
            rollout, prompts, weights=seen.weights[k], token_factor=weights, interpolated=alpha
        )
        assert_same(seen.gradients[k], expected, 1e-4)
    assert (mode in IS_DROPPED) == (0 < sum(dropped) < len(dropped))
    if mode != "none" or method == "loglinear":
        with pytest.raises(AssertionError):
            assert_same(seen.gradients[1], naive_gradients(rollout, prompts, weights=seen.weights[1])[1], 1e-3)


# ---- rewards and advantages -----------------------------------------------------------------------------------


def test_a_divergence_in_the_reward_is_that_of_the_whole_completion(tiny_model_folder: Path, tmp_path: Path) -> None:
    """After a step, so that policy and reference differ; the loss itself has no KL term then."""
    module, seen = fit(
        tiny_model_folder,
        tmp_path,
        steps=2,
        kl={"coef": 0.5, "in_reward": True, "estimator": "k1"},
        advantage="dr_grpo",
    )
    rollout, policy, reference = seen.rollouts[1], tiny_llama(), tiny_llama()
    policy.load_state_dict(seen.weights[1], strict=False)
    rewards = rollout.rewards.clone()
    for p, group in enumerate(rollout.completions):
        for g, completion in enumerate(group):
            ids = rollout.prompts[p].token_ids
            with torch.no_grad():
                old, ref = (
                    plain_logprobs(model, ids, completion.token_ids, rollout.sampling)[0]
                    for model in (policy, reference)
                )
            rewards[p, g] -= 0.5 * (old - ref).sum()
    assert float((rewards - rollout.rewards).abs().max()) > 1e-3
    torch.testing.assert_close(rollout.advantages, rewards - rewards.mean(1, keepdim=True), atol=1e-4, rtol=1e-4)
    assert module.advantage.zero_for_equal_rewards and seen.metrics[1]["train/kl"] != 0


@dataclass
class Fading(Advantage):
    """GRPO's advantages, which fade with a token's position; `constant` gives all tokens the same."""

    constant: bool = False

    @property
    def needs_tokens(self) -> bool:
        return True

    def __call__(self, groups: GroupBatch) -> Tensor:
        assert groups.mask is not None and groups.turns is not None
        assert bool(((groups.turns >= 0) | ~groups.mask).all())
        rows = standardised(groups.rewards, groups.has_reward, 1e-6).reshape(-1, 1)  # (B, 1)
        fading = 1 / torch.arange(1, groups.mask.shape[1] + 1, dtype=rows.dtype)
        return rows * (torch.ones_like(fading) if self.constant else fading)


def test_advantages_of_tokens_weigh_each_token(tiny_model_folder: Path, tmp_path: Path) -> None:
    def fading(old: Tensor, *_: Any) -> Tensor:
        return 1 / torch.arange(1, len(old) + 1)

    for constant, factor in ((True, None), (False, fading)):
        _, seen = fit(tiny_model_folder, tmp_path, advantage=Fading(constant), compute={"tokens_per_microbatch": 110})
        assert_same(seen.gradients[0], naive_gradients(seen.rollouts[0], range(6), token_factor=factor)[1])


def test_each_reward_is_normalised_by_itself_and_a_function_of_trl_gets_the_whole_rollout(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    rewards = ("tiny_rewards.in_steps", "tiny_rewards.first_token")
    _, seen = fit(tiny_model_folder, tmp_path, steps=2, rewards=rewards, advantage="gdpo")
    assert [m["reward/batch"] for m in seen.metrics] == [24, 24] and [m["reward/step"] for m in seen.metrics] == [0, 1]
    for rollout in seen.rollouts:
        parts = {name: part.double() for name, part in rollout.parts.items()}
        assert list(parts) == ["in_steps", "first_token"] and parts["in_steps"].isnan().sum() == 1
        group = GroupBatch(rollout.rewards.double(), rollout.correct.double(), None, None, parts, rollout.weights)
        assert rollout.advantages is not None
        torch.testing.assert_close(rollout.advantages.double(), GDPOAdvantage()(group), rtol=1e-4, atol=1e-5)


# ---- sampling and scoring share one distribution ----------------------------------------------------------


def test_temperature_and_banned_tokens_reach_engine_and_loss_alike(tiny_model_folder: Path, tmp_path: Path) -> None:
    sampling = Sampling(temperature=0.7, max_tokens=T_MAX, banned_token_ids=(60, 61, 62))
    module, seen = fit(tiny_model_folder, tmp_path, sampling=sampling)
    assert seen.metrics[0]["train/engine_difference"] < 1e-5
    assert seen.metrics[0]["train/effective_sample_size"] == pytest.approx(1.0, abs=1e-5)
    assert seen.rollouts[0].exact and module.importance.correction is None, "the exact engine needs none"
    assert not {60, 61, 62} & {t for group in tokens_of(seen.rollouts[0]) for ids in group for t in ids}
    assert_same(seen.gradients[0], naive_gradients(seen.rollouts[0], range(6))[1])
