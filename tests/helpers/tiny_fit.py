"""Training in the real flow, in this process: Trainer, RolloutCallback, Arithmetic and GRPO, and what it saw."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tiny import plain_logprobs, tiny_llama
from tiny_engines import change
from torch import Tensor

from lit_rlvr.algorithms import GRPO
from lit_rlvr.datamodules import Arithmetic, PromptDataModule
from lit_rlvr.engines.base import RolloutEngine
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.rewards import FunctionReward
from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.rollout.record import Replay
from lit_rlvr.rollout.settings import Safeguards
from lit_rlvr.sampling import Sampling
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.step.plan import StepPlan
from lit_rlvr.types import Completion, Rollout, cut_sequences

Gradients = dict[str, Tensor]
T_MAX = 9


@dataclass
class Recorder(Callback):
    """What each optimizer step saw: gradients (before clipping, which is off), weights, and the rollouts."""

    gradients: list[Gradients] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)
    minibatches: list[list[int]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        parameters = dict(pl_module.policy.model.named_parameters())
        self.gradients.append({n: p.grad.clone() for n, p in parameters.items() if p.grad is not None})
        self.weights.append({n: p.detach().clone() for n, p in parameters.items()})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.rollouts.append(batch.rollout)
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})


@dataclass
class MixedVersions(Recorder):
    """Makes the tokens of some rollouts those of three versions of the weights: each completion begins with older ones.

    Args:
        iterations: whose rollouts, from 0.
        distance: how far apart two versions are, in standard deviations of a weight.
    """

    iterations: Sequence[int] = (0,)
    distance: float = 0.1
    ages: dict[int, Tensor] = field(default_factory=dict)
    """Iteration -> (B, T), in iterations."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.iteration not in self.iterations:
            return
        rollout, models = batch.rollout, [pl_module.policy.model]
        for seed in range(2):
            older = tiny_llama()
            older.load_state_dict(models[-1].state_dict())
            change(older, self.distance, seed)
            models.append(older)
        rows, places = torch.meshgrid(*(torch.arange(size) for size in rollout.mask.shape), indexing="ij")
        age = self.ages[pl_module.iteration] = (2 - (places + rows % 5) // 3).clamp(min=0)
        rollout.versions = pl_module.updates - age * pl_module.updates_per_rollout * pl_module.epochs_per_rollout
        for p, group in enumerate(rollout.completions):
            for g, completion in enumerate(group):
                row, ids = p * len(group) + g, rollout.prompts[p].token_ids
                with torch.no_grad():
                    by_age = [plain_logprobs(m, ids, completion.token_ids, rollout.sampling)[0] for m in models]
                logprobs = torch.stack(by_age).gather(0, age[row, None, : len(completion.token_ids)])[0]
                rollout.rollout_logprobs[row, : len(logprobs)] = logprobs
                group[g] = replace(completion, logprobs=tuple(logprobs.tolist()))


class Recording(RLVRModule):
    """Tells the recorder which prompts each step is on."""

    recorder: Recorder
    skip_nothing = False

    @property
    def trains_all_rows(self) -> bool:
        return self.skip_nothing or super().trains_all_rows

    def on_train_start(self) -> None:
        super().on_train_start()
        measure = self.updater.measure

        def recorded(plan: StepPlan, *others: Any) -> dict[str, float]:
            self.recorder.minibatches.append(list(plan.groups))
            return measure(plan, *others)

        self.updater.measure = recorded  # type: ignore[method-assign]


def fit(
    folder: Path,
    root: Path,
    steps: int = 1,
    rewards: Sequence[str] | None = ("tiny_rewards.first_token",),
    engine: RolloutEngine | None = None,
    prompts_per_rollout: int = 6,
    validate_every_rollouts: int | None = None,
    group_size: int = 4,
    sampling: Sampling | None = None,
    max_failure_rate: float = 0.05,
    probe_every: int = 10,
    skip_nothing: bool = False,
    staleness: int = 0,
    replay_routes: bool = False,
    replay: Replay = Replay(),  # noqa: B008  # frozen
    max_group_seconds: float | None = None,
    environment: Any = None,
    recorder: Recorder | None = None,
    data: PromptDataModule | None = None,
    algorithm: type[RLVRModule] = GRPO,
    trainer_options: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    **options: Any,
) -> tuple[Any, Recorder]:
    """Train in this process, on the CPU, with the real Trainer and callbacks; return the module and what was seen.

    By default it takes one step of GRPO on six prompts of arithmetic with four completions each, at a learning rate of
    1e-2, without clipping of gradients, validation or files.

    Args:
        folder: the model's folder.
        root: the folder of the run.
        steps: optimizer steps.
        rewards: dotted paths of functions; completions that are cut off are judged, too. None = no rewards.
        engine: samples; None = a new `HFEngine`.
        prompts_per_rollout: prompts of arithmetic in an iteration; without effect where `data` is given.
        validate_every_rollouts, group_size, environment, staleness, replay_routes, replay: see `RolloutCallback`.
        sampling: by default up to `T_MAX` tokens at temperature 1.
        max_failure_rate, probe_every, max_group_seconds: see `Safeguards`.
        skip_nothing: also run the completions that have no gradient.
        recorder: notes what the steps see; None = a new `Recorder`.
        data: the data; None = `Arithmetic`.
        algorithm: the class of the module, to which `Recording` is added.
        trainer_options: of Lightning's Trainer, in addition to those of these tests or in their place.
        checkpoint: file of a checkpoint to resume from.
        options: arguments of the algorithm.

    Raises:
        UserError: as a run does.
    """
    recorder = recorder or Recorder()
    options["optim"] = {"max_grad_norm": 0.0} | options.get("optim", {})
    if not issubclass(algorithm, Recording):
        algorithm = type(f"Recording{algorithm.__name__}", (Recording, algorithm), {})
    module: Any = algorithm(model=str(folder), **{"lr": 1e-2} | options)
    module.recorder, module.skip_nothing = recorder, skip_nothing
    rollout = RolloutCallback(
        group_size=group_size,
        engine=engine or HFEngine(),
        sampling=sampling or Sampling(max_tokens=T_MAX),
        rewards=None if rewards is None else [FunctionReward(path, truncated_is_wrong=False) for path in rewards],
        environment=environment,
        validate_every_rollouts=validate_every_rollouts,
        safeguards=Safeguards(
            max_failure_rate=max_failure_rate, probe_every=probe_every, max_group_seconds=max_group_seconds
        ),
        staleness=staleness,
        replay_routes=replay_routes,
        replay=replay,
    )
    usual: dict[str, Any] = dict(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=root,
        callbacks=[rollout, recorder],
    )
    trainer = Trainer(**usual | (trainer_options or {}))
    trainer.fit(
        module,
        datamodule=data or Arithmetic(prompts_per_rollout=prompts_per_rollout, held_out=10),
        ckpt_path=checkpoint,
    )
    return module, recorder


def assert_same(one: Gradients, other: Gradients, relative: float = 1e-5) -> None:
    """Assert that two gradients differ by at most `relative` of the largest number in the second, which is not zero."""
    scale = max(float(g.abs().max()) for g in other.values())
    assert scale > 1e-6, "a gradient of zero would prove nothing"
    assert one.keys() == other.keys()
    assert max(float((one[n] - other[n]).abs().max()) for n in one) <= relative * scale


def by_sequences(model: Any, ids: Sequence[int], completion: Completion, sampling: Sampling) -> Tensor:
    """Return log-probabilities (n,) of a completion's tokens, each of its sequences alone behind the prompt."""
    parts = cut_sequences(completion.token_ids, completion.sequence_lengths)
    return torch.cat([plain_logprobs(model, ids, part, sampling)[0] for part in parts])


def naive_gradients(
    rollout: Rollout,
    prompts: Sequence[int],
    aggregation: str = "sequence_mean",
    weights: dict[str, Tensor] | None = None,
    old_weights: dict[str, Tensor] | None = None,
    token_factor: Any = None,
    kl_coef: float = 0.0,
    ref_weights: dict[str, Tensor] | None = None,
    interpolated: Tensor | None = None,
    advantages: Tensor | None = None,
    by_sequence: bool = False,
) -> tuple[float, Gradients]:
    """GRPO's loss on some prompts' groups in 40 lines: one sequence at a time, everything run, no tricks.

    Args:
        token_factor: (old (n,), engine (n,), logp (n,), advantage) -> importance weights (n,).
        interpolated: (B, T) alpha of AReaL's log-linear old policy, to use it.
        advantages: (B, T), in place of GRPO's.
        by_sequence: each sequence of an episode counts as one.
    """
    models = []
    for state in (weights, old_weights, ref_weights):
        model = tiny_llama()
        if state is not None:
            model.load_state_dict(state, strict=False)
        models.append(model)
    model, old_model, ref_model = models
    masks = rollout.mask.view(len(rollout.prompts), rollout.group_size, -1)
    rows = len(prompts) * rollout.group_size
    tokens = float(masks[list(prompts)].sum())
    sequences = 0
    for p in prompts:
        for g, completion in enumerate(rollout.completions[p]):
            parts = cut_sequences(masks[p, g, : len(completion.token_ids)], completion.sequence_lengths)
            sequences += sum(bool(part.any()) for part in parts) or 1
    loss = torch.zeros(())
    for p in prompts:
        rewards = rollout.rewards[p]
        known = rewards[torch.tensor([status != "error" for status in rollout.statuses[p]])]
        spread = known.std(correction=0)
        for g, completion in enumerate(rollout.completions[p]):
            mask = masks[p, g, : len(completion.token_ids)]
            advantage = (rewards[g] - known.mean()) / (spread + 1e-6)
            if advantages is not None:
                advantage = advantages[p * rollout.group_size + g, : len(completion.token_ids)]
            ids = rollout.prompts[p].token_ids
            logp = by_sequences(model, ids, completion, rollout.sampling)
            with torch.no_grad():
                old = by_sequences(old_model, ids, completion, rollout.sampling)
                ref = by_sequences(ref_model, ids, completion, rollout.sampling)
                engine = torch.tensor(completion.logprobs)
                if interpolated is not None:
                    alpha = interpolated[p * rollout.group_size + g, : len(engine)]
                    old = engine + alpha * (logp.detach() - engine)
            w = (logp - old).exp()
            terms = -torch.minimum(w * advantage, w.clamp(0.8, 1.2) * advantage)
            if token_factor is not None:
                terms = terms * token_factor(old, engine, logp.detach(), advantage)
            terms = terms + kl_coef * ((ref - logp).exp() - (ref - logp) - 1)
            share = {
                "sequence_mean": 1 / (rows * max(int(mask.sum()), 1)),
                "token_mean": 1 / tokens,
                "group_token_mean": 1 / (len(prompts) * float(masks[p].sum())),
                "constant": 1 / (rows * T_MAX),
                "token_sum": 1 / rows,
            }[aggregation]
            if not by_sequence:
                loss = loss + (terms * mask).sum() * share
                continue
            assert aggregation == "sequence_mean"
            parts = [cut_sequences(values, completion.sequence_lengths) for values in (terms * mask, mask)]
            for of_terms, of_mask in zip(*parts, strict=True):
                loss = loss + of_terms.sum() / (sequences * max(int(of_mask.sum()), 1))
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
