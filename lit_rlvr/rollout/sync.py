"""Rollouts of the newest weights: sampled in rounds, waited for, and trained on."""

from __future__ import annotations

from typing import Any

from lit_rlvr.distributed.collectives import rank, world_size
from lit_rlvr.errors import UserError
from lit_rlvr.rollout.assemble import join
from lit_rlvr.rollout.generate import completion_seeds
from lit_rlvr.rollout.source import CollectingSource
from lit_rlvr.rollout.summaries import Summaries, count_mixed, count_repeats
from lit_rlvr.types import Prompt, PromptBatch, Rollout


class SyncSource(CollectingSource):
    """Samples a rollout, waits for it, and trains on it: the weights that sample are those that are trained.

    With dynamic sampling, further prompts are sampled in rounds of as many groups, until enough groups are mixed.
    """

    def generate(self, batch: PromptBatch) -> tuple[Rollout, Summaries]:
        return self.generate_round(batch.prompts, rounds=1)

    def generate_round(self, prompts: list[Prompt], rounds: int) -> tuple[Rollout, Summaries]:
        """Sample and score a round of prompts.

        Args:
            prompts: this rank's prompts of this round.
            rounds: sampling rounds so far, this one included.
        """
        repeats = self.count_repeats_in_round(rounds)
        seeds = completion_seeds(prompts, repeats, self.group_size, "rollout", self.module.iteration)
        rollout, seconds = self.sampler.generate(prompts, seeds, self.sampling, self.data, self.module.updates)
        for stage, passed in seconds.items():
            self.seconds[stage] += passed
        rollout.repeats = repeats
        return rollout, self.summarise(rollout)

    def count_repeats_in_round(self, rounds: int) -> list[int]:
        """Return how often each of this rank's prompts of this round occurred earlier in the iteration: in earlier
        rounds, on lower ranks, or earlier on this rank.

        Args:
            rounds: sampling rounds so far, this one included.
        """
        size = self.data.prompts_per_rollout
        prompts, _ = self.data.stream.take(rounds * size, self.data.cursor)
        per_rank = size // world_size()
        sample_ids = [prompt.sample.id for prompt in prompts]
        repeats = count_repeats(sample_ids)  # of all prompts of the iteration so far
        first = len(repeats) - size + rank() * per_rank  # this rank's first prompt of this round
        return repeats[first : first + per_rank]

    def wants_more(self, summaries: Summaries, rounds: int, batch: PromptBatch) -> bool:
        selection = self.module.selection
        needed = selection.num_needed(len(batch) * world_size())
        return count_mixed(summaries) < needed and rounds < selection.max_rounds

    def generate_more(
        self, rollout: Rollout, summaries: Summaries, rounds: int, batch: PromptBatch
    ) -> tuple[Rollout, Summaries]:
        further = self.data.train_dataloader().take(batch.cursor)
        batch.cursor = further.cursor
        further_rollout, further_summaries = self.generate_round(further.prompts, rounds)
        summaries = [before + after for before, after in zip(summaries, further_summaries, strict=True)]
        return join(rollout, further_rollout), summaries

    def round_size(self, summaries: Summaries, batch: PromptBatch) -> int:
        return len(batch)

    def release_engine(self) -> None:
        self.sampler.synced_engine.sleep()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        groups = state.get("queue", {}).get("groups")
        if groups:
            raise UserError(
                f"rollout.staleness: the checkpoint has {len(groups)} groups that were on their way; resume with the "
                "staleness that it was made with"
            )
        self.reference_rewards.load_state_dict(state["reference"])
