"""`lit-rlvr tune`: samples for some minutes, and chooses G, max_tokens, prompts and a warm start of a config."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb, sqrt
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
import yaml
from jsonargparse import Namespace

from lit_rlvr.commands.filter import open_sampler, pass_rate, prompts_to_sample
from lit_rlvr.common.log import log
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.noise import ScoredGroup, first_completions, measure_noise
from lit_rlvr.evaluation.records import RecordRow, group_rows
from lit_rlvr.evaluation.sampler import Sampler
from lit_rlvr.policy.loading import load_model_config
from lit_rlvr.rewards.combine import Scores, score_rollout
from lit_rlvr.rewards.gold_answers import find_long_answers
from lit_rlvr.rollout.preflight.lengths import context_length
from lit_rlvr.run.advice import TUNED
from lit_rlvr.run.health.course import CERTAIN
from lit_rlvr.run.health.findings import HOPELESS
from lit_rlvr.run.health.progress import rollout_factor
from lit_rlvr.run.warm_start import LARGE, WarmStart, WarmStartResult
from lit_rlvr.sizing.memory import shape_of
from lit_rlvr.training.validation_metrics import constant_guess
from lit_rlvr.types import Completion, Prompt

if TYPE_CHECKING:
    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.rollout import RolloutCallback

GROUP_SIZES = (4, 8, 16)
"""The group sizes to choose from, besides the config's own."""
ENOUGH, NEARLY = 0.5, 0.9
"""The share of prompts with a signal that is enough, and the share of the largest one that is as good."""
CUT, GAIN = 0.1, 0.02
"""The share of truncated completions above which longer ones are tried, and the accuracy that longer ones must add."""
FIRST_PROMPTS, MORE_PROMPTS, MOST_MEASURED = 8, 32, 512
"""Prompts of the first measurement, of each further one, and of all."""
LEAST_PROMPTS = 4
"""The fewest prompts of a rollout that larger groups leave."""
LEAST_TOKENS = 32
"""The smallest max_tokens that `tune` chooses where completions are cut off: a model that rambles needs room to end."""
FIRST_PART, TRAINED_PART = 0.25, 0.7
"""The parts of the minutes after which the measurement before a warm start, and the warm start itself, end."""
LARGEST_MULTIPLE = 8
"""The largest multiple of max_tokens that is tried."""
FIRST_STEPS, EXACT = 100, 0.5
"""The most supervised steps of a warm start that is written, and the share of exact greedy answers that ends it; beyond
a share of about one half samples are right often enough, too."""
PRETRAINED_LR = 5e-5
"""The learning rate of such a warm start for a pretrained model."""
PAID = 0.9
"""A warm start trains on a column whose texts the rewards call right in at least this share of the rows."""

MeasuredGroup = tuple[Prompt, list[RecordRow]]


@dataclass
class Tuned:
    """A config that `tune` chooses, with what it measured.

    Args:
        settings: key of an option -> its value.
        reasons: a sentence for each choice.
        limits: (max_tokens, accuracy, share of truncated completions, share of prompts with a signal) of the first
            prompts.
        sizes: group size -> the share of prompts with a signal.
        prompts: measured prompts.
        samples: completions of each.
        accuracy: the share of right answers.
        noise_scale: the gradient's, in prompts; None if it was not measured.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    limits: list[tuple[int, float, float, float]] = field(default_factory=list)
    sizes: dict[int, float] = field(default_factory=dict)
    prompts: int = 0
    samples: int = 0
    accuracy: float = 0.0
    noise_scale: float | None = None

    def choose(self, reason: str, **settings: Any) -> None:
        """Add settings (dots of their keys written as two underscores) and the reason for them."""
        self.settings |= {key.replace("__", "."): value for key, value in settings.items()}
        self.reasons.append(reason)

    def text(self) -> str:
        """Return the config, with the reasons as comments."""
        nested = Namespace()
        for key, value in self.settings.items():
            nested[key] = value
        lines = [
            f"Measured: {self.prompts} prompts with {self.samples} completions each.",
            *self.reasons,
        ]
        title = f"{TUNED}; put it after the config that it was made for: --config C --config THIS.\n"
        return title + "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(nested.as_dict(), sort_keys=False)


class Tuner:
    """A sampler of prompts of a config, with its engine, sampling and rewards.

    Args:
        module: the algorithm of the config.
        data: its training prompts.
        rollout: its engine, sampling settings and rewards.
        warm_start: the warm start to try, where one is needed.
        dtype: the engine's data type.
        ranks: processes of a run.
        minutes: the most time for everything; a batch under way, and the first one after a warm start, end later.
        device: the device on which a warm start trains.
    """

    def __init__(
        self,
        module: RLVRModule,
        data: PromptDataModule,
        rollout: RolloutCallback,
        warm_start: WarmStart,
        dtype: torch.dtype,
        ranks: int,
        minutes: float,
        device: torch.device,
    ) -> None:
        self.started = time.perf_counter()
        self.module = module
        self.data = data
        self.rollout = rollout
        self.warm_start = warm_start
        self.dtype = dtype
        self.ranks = ranks
        self.seconds = 60 * minutes
        self.device = device
        self.updates = module.updates_per_rollout  # which the measurement of the noise changes
        if module.demonstrates:
            raise UserError("tune: SFT samples nothing to train on, so it has no group_size or max_tokens to choose")
        self.samples = max(*GROUP_SIZES, rollout.group_size)
        prompts = prompts_to_sample(module, data, rollout, "train")
        self.prompts = random.Random(derive_seed("tune", data.seed)).sample(prompts, len(prompts))
        self.tuned = Tuned(samples=self.samples)
        self._scored: dict[tuple[int, str], ScoredGroup] = {}  # by max_tokens and sample id

    def run(self) -> Tuned:
        """Measure the model, and choose the settings.

        If the model does not answer yet and the data show right answers, choose a warm start too, and measure after it.
        """
        log.info(
            "tune: about %.1f minutes with loading, of which a warm start takes up to %.1f; a batch under way, and the "
            "first one after a warm start, end later",
            self.seconds / 60,
            (TRAINED_PART - FIRST_PART) * self.seconds / 60,
        )
        self._apply_warm_start()
        limit, groups = self._measure(self._least_tokens())
        if self._needs_start(groups):
            columns = self._right_columns()
            if columns:
                self._make_warm_start(columns, _accuracy(groups))
                limit, groups = self._measure(self._least_tokens())
            else:
                self.tuned.reasons.append(
                    "A warm start needs a column of texts that are right by the rewards (docs/sft.md); if one should "
                    "be right, see what `lit-rlvr check REWARD --data FILE` says."
                )
        self._choose(limit, groups)
        return self.tuned

    def _left(self, part: float = 1.0) -> float:
        """Return the seconds until a part of the minutes is over."""
        return self.started + part * self.seconds - time.perf_counter()

    def _needs_start(self, groups: Sequence[MeasuredGroup]) -> bool:
        """Return whether a warm start is possible and next to nothing is right, or no more than by a constant guess."""
        may_start = (
            self.rollout.environment is None
            and self.module.model_source.adapter != "continue"
            and len(self.prompts) >= 4
        )
        if not may_start or self.warm_start.steps:
            return False
        accuracy = _accuracy(groups)
        guess = constant_guess(Counter(str(prompt.sample.answer) for prompt in self.prompts))
        return accuracy < max(HOPELESS, guess + CERTAIN * sqrt(accuracy * (1 - accuracy) / len(groups)))

    def _right_columns(self) -> list[str]:
        """Return the columns whose texts the rewards call right, the longest texts first."""
        samples = []
        for prompt in self.prompts[:MORE_PROMPTS]:
            samples.append(prompt.sample)
        lengths: dict[str, float] = {}
        for name in samples[0].row:
            texts = []
            for sample in samples:
                text = sample.row.get(name)
                if isinstance(text, str):
                    texts.append(text)
            if len(texts) == len(samples):
                completions = [Completion(text, tuple(self.data.tokenizer.encode(text)), "stop") for text in texts]
                scores = score_rollout(self.rollout.rewards, [[completion] for completion in completions], samples)
                if scores.correct.mean() >= PAID:
                    lengths[name] = fmean(completion.length for completion in completions)
        return sorted(lengths, key=lambda name: lengths[name], reverse=True)

    def _make_warm_start(self, columns: list[str], accuracy: float) -> None:
        """Train on the texts of each column, choose the best one, and forget what was measured without them."""
        size = shape_of(load_model_config(self.module.model_folder)).parameters
        options: dict[str, Any] = dict(
            solution=columns, steps=FIRST_STEPS, until=EXACT, batch_size=16, checked=64, check_every=10
        )
        if size >= LARGE:
            options["lr"] = PRETRAINED_LR
        self.warm_start, self.tuned = WarmStart(**options), Tuned(samples=self.samples)
        best, *others = self._apply_warm_start(max(self._left(TRAINED_PART), 0) / len(columns))
        self.warm_start = self.warm_start.on_column(best.column)
        options["solution"] = best.column
        compared = "".join(f"; {other}" for other in others)
        self.tuned.choose(
            f"warm_start: only {accuracy:.0%} of the answers are right, so supervised steps on the column "
            f"{best.column!r} come first ({best}{compared}).",
            **{f"warm_start__{name}": value for name, value in options.items()},
        )
        if best.was_cut:
            self.tuned.reasons.append(
                f"The minutes ended these steps at {best.steps}, and what follows is measured after them; a run makes "
                f"up to {FIRST_STEPS}. With more --minutes, tune measures what the run will have."
            )

    def _apply_warm_start(self, seconds: float | None = None) -> list[WarmStartResult]:
        """Make the warm start, if there is one, within as many tokens as its texts need; return its results."""
        sampling = self.rollout.sampling.with_max_tokens(self._least_tokens())
        return self.warm_start.apply(
            self.module, self.data, self.rollout.environment, sampling, self.dtype, self.device, seconds
        )

    def _least_tokens(self) -> int:
        """Return the config's max_tokens, or what its gold answers and the texts of a warm start need."""
        sampling = self.rollout.sampling
        tokenizer = self.data.tokenizer
        found = [find_long_answers(self.rollout.rewards, self.prompts, tokenizer, sampling, "max_tokens")]
        if self.warm_start.steps and self.rollout.environment is None:
            found.append(self.warm_start.too_long(self.prompts, tokenizer, sampling))
        needed = max((answers.needed for answers in found if answers is not None), default=sampling.max_tokens)
        if any(found):
            return min(needed, self._room())
        return sampling.max_tokens

    def _room(self) -> int:
        """Return the most tokens of a completion in the model's context."""
        context = context_length(load_model_config(self.module.model_folder)) or 2**20
        return max(1, context - max(len(prompt.token_ids) for prompt in self.prompts))

    def _measure(self, limit: int) -> tuple[int, list[MeasuredGroup]]:
        """Return the max_tokens to use, from `limit` up, and groups that were sampled with it.

        Longer completions are tried in half of the time that is left; a model that needs a warm start is measured for
        the first part of the minutes only.
        """
        max_limit = min(self._room(), max(LARGEST_MULTIPLE * limit, LEAST_TOKENS))
        longer_until = time.perf_counter() + self._left() / 2
        sampler = open_sampler(self.module, self.data, self.rollout, self.dtype, self.prompts, max_limit)
        tries: dict[int, list[MeasuredGroup]] = {}
        while True:
            begun = time.perf_counter()
            tries[limit] = self._sample(sampler, self.prompts[:FIRST_PROMPTS], limit)
            group_seconds = (time.perf_counter() - begun) / len(tries[limit])
            cut = _share_cut_off(tries[limit])
            self.tuned.limits.append((limit, _accuracy(tries[limit]), cut, self._signal(tries[limit], self.samples)))
            if cut <= CUT or limit == max_limit:
                break
            needs_start = self._needs_start(tries[limit])
            if needs_start:
                left = self._left(FIRST_PART)
            else:
                left = longer_until - time.perf_counter()
            if limit >= LEAST_TOKENS and 2 * len(tries[limit]) * group_seconds > left:
                break
            limit = min(max(2 * limit, LEAST_TOKENS), max_limit)
        roomy = []
        for found in self.tuned.limits:
            if found[0] >= LEAST_TOKENS or found[2] <= CUT:
                roomy.append(found)
        best = max(accuracy for _, accuracy, *_ in self.tuned.limits)
        limit = next((tokens for tokens, accuracy, *_ in roomy if accuracy >= best - GAIN), limit)
        groups = tries[limit]
        while len(groups) < len(self.prompts):
            left = self._left(FIRST_PART if self._needs_start(groups) else 1.0)
            count = min(MORE_PROMPTS, MOST_MEASURED - len(groups), int(left / group_seconds))
            if count < 1:
                break
            groups += self._sample(sampler, self.prompts[len(groups) : len(groups) + count], limit)
        sampler.close()
        return limit, groups

    def _sample(self, sampler: Sampler, prompts: Sequence[Prompt], limit: int) -> list[MeasuredGroup]:
        groups: dict[str, MeasuredGroup] = {}

        def judged(prompt: Prompt, completions: list[Completion], scores: Scores) -> None:
            groups[prompt.sample.id] = prompt, group_rows("tune", prompt, completions, scores, 0)
            self._scored[limit, prompt.sample.id] = completions, scores

        rollout = self.rollout
        sampler.run(
            prompts,
            rollout.sampling.with_max_tokens(limit),
            self.samples,
            rollout.rewards,
            "tune",
            self.data,
            judged,
            rollout.environment,
        )
        return list(groups.values())

    @staticmethod
    def _signal(groups: Sequence[MeasuredGroup], size: int) -> float:
        """Return the mean probability that `size` completions of a prompt differ in their rewards."""
        shares = []
        for _, rows in groups:
            rewards = []
            for row in rows:
                if row["status"] not in ("error", "unjudged"):
                    rewards.append(row["reward"])
            shares.append(mixed_share(rewards, size))
        return fmean(shares)

    def _choose(self, limit: int, groups: list[MeasuredGroup]) -> None:
        """Choose all settings by what was measured."""
        tuned = self.tuned
        rollout = self.rollout
        min_group = max(2, self.module.advantage.min_group)
        sizes = sorted(size for size in {*GROUP_SIZES, rollout.group_size} if size >= min_group)
        tuned.prompts = len(groups)
        tuned.accuracy = _accuracy(groups)
        tuned.sizes = {size: self._signal(groups, size) for size in sizes}
        wanted = min(ENOUGH, NEARLY * max(tuned.sizes.values()))
        enough = [size for size, share in tuned.sizes.items() if share >= wanted]
        if rollout.group_size in enough:
            size = rollout.group_size
        else:
            size = enough[0]
        signal = tuned.sizes[size]
        tuned.choose("The learning rate finds itself.", model__init_args__lr="auto")
        others = []
        for other, share in tuned.sizes.items():
            if other != size:
                others.append(f"{share:.0%} with {other}")
        tuned.choose(
            f"group_size {size}: {signal:.0%} of the prompts give a signal (" + ", ".join(others) + ").",
            rollout__group_size=size,
        )
        self._choose_prompts(limit, size, [prompt for prompt, _ in groups])
        if signal < HOPELESS and tuned.accuracy < ENOUGH:
            if self.warm_start.steps:
                more = "give the warm start more steps"
            else:
                more = "add a warm start (docs/sft.md)"
            tuned.reasons.append(f"{tuned.accuracy:.0%} of the answers are right: {more}, or take easier prompts.")
        elif signal < ENOUGH:
            tuned.reasons.append(
                f"Take {'harder' if tuned.accuracy > ENOUGH else 'easier'} prompts; lit-rlvr filter keeps those of a "
                "file that give a signal."
            )
        self._choose_tokens(limit)

    def _choose_tokens(self, limit: int) -> None:
        limits = []
        for tokens, right, cut, _ in self.tuned.limits:
            limits.append(f"{tokens}: accuracy {right:.3f}, {cut:.0%} cut off")
        tried = "; ".join(limits)
        before = self.rollout.sampling.max_tokens
        self.tuned.choose(
            f"max_tokens {limit}, {'as' if limit == before else f'not {before} as'} before ({tried}).",
            rollout__sampling__max_tokens=limit,
        )
        if limit != before == self.rollout.eval_sampling.max_tokens:
            self.tuned.settings["rollout.evaluation.sampling.max_tokens"] = limit

    def _choose_prompts(self, limit: int, size: int, prompts: list[Prompt]) -> None:
        """Choose the prompts of a rollout by the completions that the config's has, and by the gradient's noise."""
        tuned = self.tuned
        per_rollout = self._prompts_per_rollout(size)
        reason = f"with {size} completions each, about as many as before"
        tuned.noise_scale = self._noise_scale(limit, size, prompts)
        if tuned.noise_scale is not None:
            in_step = per_rollout / self.updates
            tuned.reasons.append(f"The gradient's signal needs about {tuned.noise_scale:.0f} prompts in a step.")
            factor = rollout_factor(tuned.noise_scale, in_step, len(self.prompts) / per_rollout)
            if factor > 1:
                reason = f"the gradient of a step on {in_step:.0f} would be mostly noise"
                per_rollout *= factor
        if per_rollout != self.data.prompts_per_rollout:
            tuned.choose(
                f"prompts_per_rollout {per_rollout}: {reason}.", data__init_args__prompts_per_rollout=per_rollout
            )

    def _noise_scale(self, limit: int, size: int, prompts: list[Prompt]) -> float | None:
        """Measure the gradient's noise scale in prompts, in at most a quarter of the time; None = it cannot be."""
        rollout = self.rollout
        groups = {}
        for prompt in prompts:
            groups[prompt.sample.id] = first_completions(self._scored[limit, prompt.sample.id], size)
        if self.module.selection.only_mixed:
            prompts = [prompt for prompt in prompts if len(groups[prompt.sample.id][1].rewards.unique()) > 1]
        sampling = rollout.sampling.with_max_tokens(limit)
        return measure_noise(
            self.module, self.data, rollout, prompts, groups, sampling, self.dtype, self.device, self.seconds / 4
        )

    def _prompts_per_rollout(self, size: int) -> int:
        """Return how many prompts with `size` completions make about as many completions as the config's."""
        if size == self.rollout.group_size:
            return self.data.prompts_per_rollout
        unit = self.ranks * self.updates
        before = self.data.prompts_per_rollout
        wanted = max(before * self.rollout.group_size / size, min(before, LEAST_PROMPTS))
        return unit * max(1, min(round(wanted / unit), len(self.prompts) // unit))


def mixed_share(rewards: Sequence[float], size: int) -> float:
    """Return the probability that `size` of these rewards, drawn without replacement, are not all equal."""
    size = min(size, len(rewards))
    if size < 2:
        return 0.0
    return 1 - sum(comb(count, size) for count in Counter(rewards).values()) / comb(len(rewards), size)


def _share_cut_off(groups: Sequence[MeasuredGroup]) -> float:
    """Return the share of completions that a limit of tokens ended."""
    are_cut = []
    for _, rows in groups:
        for row in rows:
            are_cut.append(row["finish_reason"] == "length")
    return fmean(are_cut)


def _accuracy(groups: Sequence[MeasuredGroup]) -> float:
    rates = []
    for _, rows in groups:
        rate = pass_rate(rows)
        if rate is not None:
            rates.append(rate)
    if rates:
        return fmean(rates)
    return 0.0
