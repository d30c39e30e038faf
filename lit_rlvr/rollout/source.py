"""Where rollouts come from, and how old the weights that sample them may be: `RolloutSource.next`."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from lit_rlvr.common.terminal import progress
from lit_rlvr.distributed.collectives import rank, world_size
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.rollout.balance import balance
from lit_rlvr.rollout.generate import GroupSampler
from lit_rlvr.rollout.reference_rewards import ReferenceRewards
from lit_rlvr.rollout.summaries import (
    Summaries,
    count_mixed,
    count_successes,
    gather_summaries,
    number_mixed,
    trainable_groups,
)
from lit_rlvr.sampling import Sampling
from lit_rlvr.training.loop import CollectSteps, collect
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.types import Completion, Prompt, PromptBatch, Rollout

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule

STAGE_TEXTS = {
    "wait": "waiting for groups of completions",
    "sync": "sending the weights to the engine",
    "reference": "sampling from the reference",
}
"""Timed stage of an iteration -> its name in the progress line."""


class RolloutSource(ABC):
    """Turns batches of prompts into rollouts.

    Attributes:
        sampling: how completions are sampled.
        metrics: of the last rollout: seconds by stage as `time/...`, and counts as `rollout/...`.
        extra_completions: completions that were sampled for the last rollout and are not in it (the reference's).
        generates: whether it samples with the run's engine.
        is_scored: whether rewards judge its completions.
    """

    generates: ClassVar[bool] = True
    is_scored: ClassVar[bool] = True
    sampling: Sampling
    metrics: dict[str, float]
    extra_completions: list[list[Completion]]

    @property
    def generation_seconds(self) -> float:
        """Seconds spent on sampling the last rollout."""
        return self.metrics["time/generate"]

    def ban(self, token_ids: Sequence[int]) -> None:
        """Sample some tokens no longer."""
        self.sampling = self.sampling.with_banned(token_ids)

    @abstractmethod
    def next(self, batch: PromptBatch) -> Rollout:
        """Return the rollout of one iteration, with the weight version of each token.

        Collective: call it on every rank.

        Args:
            batch: says how many groups, and where the data's cursor is. A source may take prompts beyond it, and then
                sets `batch.cursor` to the position after them.
        """

    def wait(self) -> None:  # noqa: B027  # optional
        """Wait until the engine is free for validation."""

    def close(self) -> None:  # noqa: B027  # optional
        """Stop the work that runs during training; the engine closes after it."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to continue exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  # optional
        """Restore what `state_dict` returned."""


class CollectingSource(CollectSteps, RolloutSource):
    """Makes a rollout by the steps of `collect`: samples groups, and chooses those to train on.

    Args:
        sampler: generates and scores.
        module: the algorithm: its weights, and which groups it needs.
        data: where further prompts come from.
        group_size: completions per prompt, G.
        sampling: how completions are sampled.
        pinned_groups: number of the first process's first groups that stay there when groups are balanced.
    """

    def __init__(
        self,
        sampler: GroupSampler,
        module: RLVRModule,
        data: PromptDataModule,
        group_size: int,
        sampling: Sampling,
        pinned_groups: int,
    ) -> None:
        self.sampler = sampler
        self.module = module
        self.data = data
        self.group_size = group_size
        self.sampling = sampling
        self.pinned_groups = pinned_groups
        self.reference_rewards = ReferenceRewards(group_size)
        self.metrics = {}
        self.extra_completions = []
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by stage of the iteration

    def next(self, batch: PromptBatch) -> Rollout:
        """Return the rollout of one iteration, which `collect` in training/loop.py makes by the steps below."""
        self.metrics = {}
        self.extra_completions = []
        self.seconds = defaultdict(float)
        rollout = collect(self, batch)
        self.data.prepare_ahead(batch.cursor)
        self.metrics |= {f"time/{stage}": seconds for stage, seconds in self.seconds.items()}
        return rollout

    def sync_weights(self, prompts: list[Prompt] | None) -> None:
        with self.timed("sync"):
            version = "policy", self.module.updates
            self.sampler.synced_engine.sync_weights(self.module.policy, version, prompts, self.sampling)

    def summarise(self, rollout: Rollout) -> Summaries:
        """Return what all ranks know of each other's groups.

        Collective: call it on every rank.
        """
        return gather_summaries(rollout, trainable_groups(self.module, rollout), self.module.selection.by)

    def choose_groups(self, rollout: Rollout, summaries: Summaries, batch: PromptBatch) -> Summaries:
        # With dynamic sampling that trains on mixed groups alone, those get numbers.
        batch.successes = count_successes(summaries)
        selection = self.module.selection
        num_prompts = len(batch) * world_size()
        if not selection.num_needed(num_prompts):
            return summaries
        self.metrics |= {
            "rollout/sampling_rounds": sum(map(len, summaries)) / num_prompts,
            "rollout/live_groups": float(count_mixed(summaries)),
        }
        if selection.only_mixed:
            summaries = number_mixed(summaries, self.round_size(summaries, batch), num_prompts)
            numbers = {}
            for p, group in enumerate(summaries[rank()]):
                numbers[p] = group.number
            rollout.kept = {p: number for p, number in numbers.items() if number is not None}
        return summaries

    def add_reference_rewards(self, rollout: Rollout) -> None:
        module, requested = self.module, self.module.reference_completions
        if requested is None:
            return
        with self.timed("reference"):
            rollout.reference_rewards = self.reference_rewards.rewards(
                requested, module.reference.version, rollout, module.iteration, module.device, self.generate_reference
            )

    @abstractmethod
    def round_size(self, summaries: Summaries, batch: PromptBatch) -> int:
        """Return the number of this rank's groups in one round: mixed groups are numbered round by round."""

    def generate_reference(self, prompts: list[Prompt], seeds: list[list[int]]) -> Scores | None:
        """Score new completions of the reference, sampled as in training; None without prompts."""
        reference = self.module.reference
        self.sampler.synced_engine.sync_weights(reference.policy, ("reference", reference.version))
        completions, scores = self.sampler.generate_and_score(prompts, seeds, self.sampling)
        self.extra_completions += completions
        return scores

    def balance(self, rollout: Rollout, summaries: Summaries) -> Rollout:
        module = self.module
        if module.policy.family is not None:
            cut = module.image_processor.cut
        else:
            cut = None
        return balance(rollout, summaries, module.updates_per_rollout, self.pinned_groups, cut)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time a stage of the iteration, and show it in the progress line."""
        started = time.perf_counter()
        progress.begin(STAGE_TEXTS[stage])
        yield
        self.seconds[stage] += time.perf_counter() - started

    def close(self) -> None:
        self.data.stop_preparing()

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self.reference_rewards.state_dict()}
