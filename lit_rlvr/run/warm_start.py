"""A short supervised warm start, for models that cannot answer at all yet and so have nothing to reinforce."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import time
from collections import Counter
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_rlvr.algorithms.sft import SFT
from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.files import cache_folder
from lit_rlvr.common.log import log
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.engines.base import EngineContext
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.environments.base import Environment, environment_fingerprint
from lit_rlvr.errors import UserError, check_all
from lit_rlvr.policy.loading import load_policy, save_model
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.sources import made_once
from lit_rlvr.rewards.combine import Scores, score_rollout
from lit_rlvr.rewards.gold_answers import LongAnswers, completion_lengths
from lit_rlvr.rewards.judges.base import Judge
from lit_rlvr.rollout.demonstrations import Demonstrations, DemonstrationSource, Pair
from lit_rlvr.rollout.episodes import Episodes
from lit_rlvr.sampling import Sampling
from lit_rlvr.training.validation_metrics import constant_guess
from lit_rlvr.types import Completion, Prompt

if TYPE_CHECKING:
    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.rollout import RolloutCallback

RESULT = "warm_start.json"
"""File of a cached warm start with its `WarmStartResult`."""
LARGE = 10_000_000
"""Parameters from which a model is taken for a pretrained one; the tiny models have a twentieth of them."""


class WarmStart:
    """Supervised training on reference solutions before the run.

    It caches the result as a model folder; a later run with the same model, data and settings starts from it at once.

    Args:
        steps: maximum number of optimizer steps; 0 = no warm start.
        until: stop once greedy decoding reproduces the solutions of at least this share of the `checked` prompts,
            within the run's `max_tokens` and `stop`. The share counts from a constant guess on: where the most frequent
            solution has 0.4 of the rows, 0.5 means 0.7 of them.
        solution: column of the data with the target completion; with an environment, a list with the text of each of
            the model's turns, which the environment answers. Of several columns, such as `[answer, worked]`, the one
            is taken after which more of the `checked` prompts are reproduced.
        batch_size: prompts in a step.
        lr: learning rate of AdamW. The default suits the tiny models; a pretrained model needs 1e-5 to 5e-5.
        checked: training prompts to hold out for the check of `until`; at most a quarter of all are held out.
        check_every: steps between two checks.
        categories: categories of the prompts to train on, such as the easier ones; all by default.
    """

    def __init__(
        self,
        steps: int = 0,
        until: float = 1.0,
        solution: str | list[str] = "solution",
        batch_size: int = 32,
        lr: float = 1e-3,
        checked: int = 128,
        check_every: int = 20,
        categories: list[str] | None = None,
    ) -> None:
        check_within("[0, inf)", "warm_start", steps=steps)
        check_within("[1, inf)", "warm_start", batch_size=batch_size, checked=checked, check_every=check_every)
        check_within("(0, 1]", "warm_start", until=until)
        check_within("[0, inf)", "warm_start", lr=lr)
        self.steps = steps
        self.until = until
        self.solution = solution
        self.batch_size = batch_size
        self.lr = lr
        self.checked = checked
        self.check_every = check_every
        self.categories = categories

    @property
    def columns(self) -> list[str]:
        """The columns with solutions, of which one is taken."""
        if isinstance(self.solution, str):
            return [self.solution]
        return self.solution

    def on_column(self, column: str) -> WarmStart:
        """Return the same warm start on one column."""
        single = copy(self)
        single.solution = column
        return single

    def apply(
        self,
        module: RLVRModule,
        data: PromptDataModule,
        environment: Environment | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        seconds: float | None = None,
    ) -> list[WarmStartResult]:
        """Let `module` start from the warm-started folder; create it if it is not cached.

        Of several columns it takes the best by `WarmStartResult.rank`.

        Args:
            module: the algorithm, whose model is replaced.
            data: the training prompts with their solutions.
            environment: the environment that answers the turns of the solutions.
            sampling: training's settings, with the limits of an episode.
            dtype: the data type in which the run computes.
            device: the device on which it trains.
            seconds: ends the training on each column early, after a step; None = no limit. What was ended early
                is not taken from the cache again.

        Returns:
            The results by column, the best first; none without a warm start.
        """
        if not self.steps:
            return []
        self._check_adapter(module)
        data.use_model(module)
        data.setup("fit")
        source = module.model_folder
        results = []
        for column in self.columns:
            start = self.on_column(column)
            result = start._apply_column(module, data, source, environment, sampling, dtype, device, seconds)
            results.append(result)
        results.sort(key=lambda result: result.rank, reverse=True)
        if len(results) > 1:
            log.info("Warm start: on %s", "; on ".join(map(str, results)))
        module.model_source.start_from(results[0].folder)
        return results

    def _apply_column(
        self,
        module: RLVRModule,
        data: PromptDataModule,
        source: str,
        environment: Environment | None,
        sampling: Sampling,
        dtype: torch.dtype,
        device: str | torch.device,
        seconds: float | None,
    ) -> WarmStartResult:
        """Return the warm start on the only column; create its folder if it is not cached."""
        (column,) = self.columns
        policy = load_policy(source)
        target = cache_folder() / "warm-start" / self._key(policy, data, environment, sampling, dtype)
        if not os.path.exists(target):
            log.info("Warm start: at most %d supervised steps, cached in %s", self.steps, target)
            size = sum(parameter.numel() for parameter in policy.model.parameters())
            if size >= LARGE and self.lr > 1e-4:
                log.warning(
                    "warm_start.lr: %g suits the tiny models, and this model has %.0f million parameters; a pretrained "
                    "model needs about 2e-5",
                    self.lr,
                    size / 1e6,
                )
        del policy
        demonstrations = Demonstrations(data, column, "warm_start.solution", source, environment, sampling)
        compute = replace(module.compute, tokens_per_microbatch=module.budget.tokens)
        learner = SFT(model=source, target=column, lr=self.lr, compute=compute)
        try:
            made_once(
                target, lambda folder: self._make(learner, demonstrations, folder, dtype, torch.device(device), seconds)
            )
        finally:
            demonstrations.close()
        result = WarmStartResult(column, str(target), **json.loads((target / RESULT).read_text()))
        if not result.was_cut:
            return result
        cut = target.with_name(f"{target.name}-{result.steps}-steps")
        shutil.rmtree(cut, ignore_errors=True)
        target.rename(cut)
        return replace(result, folder=str(cut))

    def check(
        self,
        module: RLVRModule,
        data: PromptDataModule,
        environment: Environment | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
    ) -> None:
        """Refuse data without solutions, with too few prompts or with solutions that are too long; load no weights.

        Args:
            module: the algorithm.
            data: the training prompts with their solutions.
            environment: answers the turns of the solutions.
            sampling: training's settings.

        Raises:
            UserError: the run continues an adapter, solutions or prompts are missing, or solutions are too long; the
                message names them.
        """
        if not self.steps:
            return
        self._check_adapter(module)
        prompts = self._prompts(data)

        def check_column(column: str) -> None:
            demonstrations = Demonstrations(
                data, column, "warm_start.solution", module.model_folder, environment, sampling
            )
            demonstrations.check(prompts, refuses_long=False)

        check_all(lambda: self._held_out(len(prompts)), *(partial(check_column, column) for column in self.columns))
        if environment is None and (answers := self.too_long(prompts, data.tokenizer, sampling)) is not None:
            if answers.is_hopeless:
                raise UserError(str(answers))
            log.warning("%s", answers)

    def _check_adapter(self, module: RLVRModule) -> None:
        if module.model_source.adapter == "continue":
            raise UserError(
                "warm_start: it would train the base model without its adapter; set model.lora.adapter to merge, or "
                "warm_start.steps to 0"
            )

    def too_long(self, prompts: list[Prompt], tokenizer: Any, sampling: Sampling) -> LongAnswers | None:
        """Return the solutions that do not fit into a completion of training, of the column with the longest one."""

        def too_long_in(column: str) -> LongAnswers | None:
            samples = []
            for prompt in prompts:
                if isinstance(prompt.sample.row.get(column), str):
                    samples.append(prompt.sample)
            return LongAnswers.among(
                completion_lengths(lambda sample: sample.row[column], samples, tokenizer, sampling),
                sampling.max_tokens,
                "rollout.sampling.max_tokens",
                f"solutions (column {column!r})",
            )

        return max(filter(None, map(too_long_in, self.columns)), key=lambda answers: answers.needed, default=None)

    def _prompts(self, data: PromptDataModule) -> list[Prompt]:
        """Return the training prompts of `categories`."""
        prompts = list(data.stream.prompts)
        if self.categories is None:
            return prompts
        categories = {prompt.sample.category for prompt in prompts}
        missing = []
        for category in self.categories:
            if category not in categories:
                missing.append(category)
        if missing:
            raise UserError(
                f"warm_start.categories: no training prompt has the category {missing[0]!r}; the data has "
                + (", ".join(map(repr, sorted(categories - {""}))) or "none")
            )
        return [prompt for prompt in prompts if prompt.sample.category in self.categories]

    def _held_out(self, prompts: int) -> int:
        """Return how many of the prompts to hold out."""
        if prompts < 4:
            raise UserError(
                f"warm_start: {prompts} training prompts are too few to hold one in four of them out; give 4"
            )
        return min(self.checked, prompts // 4)

    def _key(
        self,
        policy: Policy,
        data: PromptDataModule,
        environment: Environment | None,
        sampling: Sampling,
        dtype: torch.dtype,
    ) -> str:
        """Hash everything that the result depends on: the weights, the prompts, the environment and the settings."""
        used = vars(self) | {"checked": self._held_out(len(self._prompts(data))), "seed": data.seed}
        used["until"] = f"{self.until} above a guess"
        digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode())
        if environment is not None:
            digest.update(f"{environment_fingerprint(environment)} {sampling}".encode())
        elif sampling.stop or self.too_long(self._prompts(data), data.tokenizer, sampling):
            digest.update(f"{sampling.stop} {sampling.max_tokens}".encode())  # they change what is exact
        if dtype != torch.float32:
            digest.update(str(dtype).encode())
        for name, parameter in sorted(policy.model.named_parameters()):
            digest.update(name.encode() + parameter.detach().view(torch.uint8).numpy().tobytes())
        for prompt in self._prompts(data):
            images = " ".join(getattr(prompt.sample.images, "keys", ()))
            encoder = data.encoder_of(prompt.sample)
            solution = encoder.as_plain(prompt.sample.row.get(*self.columns), prompt.sample, "a completion", True)
            digest.update(f"{prompt.token_ids} {images} {solution}\n".encode())
        return digest.hexdigest()[:16]

    def _make(
        self,
        learner: SFT,
        demonstrations: Demonstrations,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        seconds: float | None,
    ) -> None:
        prompts = self._prompts(demonstrations.data)
        demonstrations.check(prompts, refuses_long=False)
        random.Random(derive_seed("warm start", demonstrations.data.seed)).shuffle(prompts)
        held_out = self._held_out(len(prompts))
        check = ExactMatch(self, demonstrations, prompts[:held_out], self._target(demonstrations, prompts), seconds)
        trainer = Trainer(
            max_steps=self.steps,
            max_epochs=-1,
            accelerator=device.type,
            strategy=SingleDeviceStrategy(device),
            precision="bf16-mixed" if dtype == torch.bfloat16 else "32-true",
            limit_val_batches=0,
            callbacks=[check],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(learner, datamodule=demonstrations.data.on_prompts(prompts[held_out:], self.batch_size))
        shutil.rmtree(folder)  # save_model creates it again, atomically
        save_model(learner.policy.model, learner.model_folder, folder)
        (folder / RESULT).write_text(json.dumps(check.result))

    def _target(self, demonstrations: Demonstrations, prompts: list[Prompt]) -> float:
        """Return the share of exact answers that `until` means: it counts from a constant guess on."""
        guess = constant_guess(Counter(repr(demonstrations.target(prompt.sample)) for prompt in prompts))
        return guess + self.until * (1 - guess)


@dataclass(frozen=True)
class WarmStartResult:
    """The result of a warm start on a column.

    Args:
        column: the column.
        folder: the trained model.
        exact: the share of the held-out prompts whose solutions greedy decoding reproduces.
        target: the share that ends it.
        steps: its optimizer steps.
        was_cut: a limit in seconds ended it early.
    """

    column: str
    folder: str
    exact: float
    target: float
    steps: int
    was_cut: bool

    @property
    def rank(self) -> tuple[bool, float]:
        """A number that is greater for a better result: first those that reach the target, by fewer steps."""
        if self.exact >= self.target:
            return True, -float(self.steps)
        return False, self.exact

    def __str__(self) -> str:
        """Say the share and the steps."""
        return f"{self.column!r}: {self.exact:.3f} exact after {self.steps} steps"


class ExactMatch(Callback):
    """Training on the solutions until greedy decoding reproduces enough of those held out.

    Args:
        start: says when to check.
        demonstrations: the solutions.
        held_out: the prompts to check.
        target: the share that has to be exact.
        seconds: ends the training after the step in which they are over; None = no limit.

    Attributes:
        result: what the last check found.
    """

    def __init__(
        self,
        start: WarmStart,
        demonstrations: Demonstrations,
        held_out: list[Prompt],
        target: float,
        seconds: float | None = None,
    ) -> None:
        self.start = start
        self.demonstrations = demonstrations
        self.held_out = held_out
        self.target = target
        self.seconds = seconds
        self.result: dict[str, Any] = {}
        self._source: DemonstrationSource  # from on_train_start on
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._source = DemonstrationSource(self.demonstrations, pl_module)  # type: ignore[arg-type]
        self._started = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        batch.rollout = self._source.next(batch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        steps = self.start.steps
        is_late = self.seconds is not None and time.perf_counter() - self._started > self.seconds
        if step % self.start.check_every and step != steps and not is_late:
            return
        data = self.demonstrations.data
        pairs = self.demonstrations.pairs([data.prepare(prompt) for prompt in self.held_out])
        share = exact_match(
            pl_module.policy, pairs, data.tokenizer, self.demonstrations.episodes, self.demonstrations.sampling
        )
        loss = float(trainer.callback_metrics.get("train/loss", math.nan))
        seconds = time.perf_counter() - self._started
        log.info(
            "Warm start: step %d of at most %d, loss %.3f, %.3f exact, %.0f s, at most about %.0f s left",
            step,
            steps,
            loss,
            share,
            seconds,
            seconds / step * (steps - step),
        )
        was_cut = is_late and share < self.target and step < steps
        self.result = {"exact": share, "target": self.target, "steps": step, "was_cut": was_cut}
        trainer.should_stop = share >= self.target or is_late


def exact_match(
    policy: Policy,
    pairs: list[Pair],
    tokenizer: Any,
    episodes: Episodes | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008  # frozen
) -> float:
    """Return the share of prompts that greedy decoding answers exactly like their solutions, in every turn.

    Args:
        policy: the trained policy.
        pairs: prompts, each with its solution.
        tokenizer: the model's tokenizer.
        episodes: plays the episodes of prompts with an environment; None without one.
        sampling: the limits of a completion; decoding is greedy.
    """
    engine = HFEngine()
    engine.start(EngineContext.in_place(policy, tokenizer, len(pairs)))
    if episodes is None:
        longest = max(len(completion.token_ids) for _, completion in pairs)
        sampling = sampling.with_max_tokens(min(longest, sampling.max_tokens))
    greedy = replace(sampling, temperature=0.0, top_p=1.0, top_k=0, banned_token_ids=policy.placeholder_ids)
    generated = engine.generate([prompt for prompt, _ in pairs], greedy, [[0]] * len(pairs), turns=episodes)
    return fmean(_is_same(answer, solution) for (answer,), (_, solution) in zip(generated, pairs, strict=True))


MEASURED = 128
"""The most questions of a validation set that are answered before a warm start."""


def accuracy_before(
    folder: str, data: PromptDataModule, rollout: RolloutCallback, device: str | torch.device
) -> float | None:
    """Return the accuracy of a model on the first questions of the validation sets, as a mean over sets.

    It decodes with the model itself, one completion of each question. None = nothing says what is right there; or an
    environment answers, or a judge is paid for each answer.

    Args:
        folder: the model.
        data: the validation sets.
        rollout: the rewards and the settings of validation.
        device: the device that computes.
    """
    is_costly = any(isinstance(reward, Judge) or reward.whole_rollout for reward in rollout.rewards)
    if is_costly or rollout.environment is not None:
        return None
    sets = []
    for each in data.validated:
        if each.prompts.get("validation") and rollout.samples_of(each.name):
            sets.append(each)
    policy = load_policy(folder).to(device)
    accuracies = []
    for dataset in sets:
        scores = _scores_before(policy, dataset, data.tokenizer, rollout)
        counted = scores.has_correct | scores.failed
        if counted.any():
            accuracies.append(float(scores.correct[counted].mean()))
    if accuracies:
        return fmean(accuracies)
    return None


def _scores_before(policy: Policy, dataset: PromptDataModule, tokenizer: Any, rollout: RolloutCallback) -> Scores:
    """Return the scores of one completion for each of the first questions of a validation set."""
    prompts = []
    for prompt in dataset.prompts["validation"][:MEASURED]:
        prompts.append(dataset.prepare(prompt))
    log.info("Warm start: %d questions of %s before it", len(prompts), dataset.name)
    engine = HFEngine()
    engine.start(EngineContext.in_place(policy, tokenizer, len(prompts)))
    sampling = rollout.eval_sampling.with_banned(policy.placeholder_ids)
    with torch.no_grad():
        generated = engine.generate(prompts, sampling, [[number] for number in range(len(prompts))])
    groups = []
    for prompt, group in zip(prompts, generated, strict=True):
        groups.append(prompt.for_rewards(group))
    return score_rollout(rollout.rewards, groups, [prompt.sample for prompt in prompts])


def _is_same(completion: Completion, solution: Completion) -> bool:
    """Return whether a completion is a solution, whose EOS it lacks where a `stop` text ended it."""
    ids = solution.token_ids
    return completion.token_ids == ids or (completion.token_ids == ids[:-1] and not completion.truncated)
