"""`SampleSets`: the rows of each split, read and checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lit_rlvr.common.user_code import defined_at
from lit_rlvr.datamodules.parts.sources import RowSources
from lit_rlvr.datamodules.reading.cells import BadRow, as_reward_weights
from lit_rlvr.datamodules.reading.checks import require_samples
from lit_rlvr.datamodules.reading.images import ImageOptions
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.datamodules.reading.rows import check_ids, filter_rows, with_distinct_ids
from lit_rlvr.datamodules.reading.split import Split
from lit_rlvr.environments.base import Environment
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import Reward, own_weights, reward_weights_of
from lit_rlvr.types import Sample


class SampleSets:
    """The checked samples of each split of a data set; each split is read once.

    Args:
        name: the data set's name; samples that name no set are of this one.
        sources: where the rows are.
        reading: how many bad rows a file may have.
        images: where images are.
        rewards: the option of a data module: names of the rewards that judge rows which name none themselves.

    Attributes:
        rewards: name of such a reward -> its weight, None for its own; None = all rewards.
        optional: the fields, of prompt and answer, that rows may lack.
        bad_rows: split -> the rows that cannot be used.
    """

    def __init__(
        self,
        name: str,
        sources: RowSources,
        reading: ReadingOptions,
        images: ImageOptions,
        rewards: list[str] | dict[str, float] | None,
    ) -> None:
        try:
            self.rewards = as_reward_weights(rewards)
        except BadRow as error:
            raise UserError(f"data.rewards: {error.reason}") from error
        self.optional: frozenset[str] = frozenset()
        self.bad_rows: dict[str, list[BadRow]] = {}
        self._name = name
        self._sources = sources
        self._reading = reading
        self._images = images
        self._samples: dict[str, list[Sample]] = {}
        self._judges: Sequence[Reward] = ()  # a row needs an answer if one of them judges it by that

    def expect(self, environment: Environment | None, rewards: Sequence[Reward] | None) -> None:
        """Let rows lack what the environment supplies or no reward needs; call it before they are read.

        Args:
            environment: the run's environment, if it has one.
            rewards: the rewards that judge the rows; None = some that need an answer in every row.
        """
        scores = environment is not None and (environment.has_reward or bool(environment.reward_functions))
        some_need_none = rewards is not None and not (rewards and all(reward.needs_answer for reward in rewards))
        if environment is not None and environment.begins:
            self.optional |= {"prompt"}
        if scores or some_need_none:
            self.optional |= {"answer"}
        self._judges = () if scores else rewards or ()

    def read(self, split: Split, rows: Callable[[Split], Any], has_closing_turns: bool) -> list[Sample]:
        """Return the usable samples of a split, in file order; later calls return the same list.

        Args:
            split: "train", "validation" or "test".
            rows: yields the split's samples and bad rows; it may be a user's.
            has_closing_turns: conversations are expected to end with the assistant's turns.

        Raises:
            UserError: a file has too many bad rows, or none that is usable, or ids are not unique.
        """
        if split not in self._samples:
            samples = self._usable(split, rows, has_closing_turns)
            self._sources.check_used(split, samples)
            if not samples and split == "train":
                raise UserError(f"{defined_at(rows)} must give Samples for the split 'train', it gave none")
            samples = with_distinct_ids(samples)
            check_ids(samples)
            self._samples[split] = samples
        return self._samples[split]

    def _usable(self, split: Split, rows: Callable[[Split], Any], has_closing_turns: bool) -> list[Sample]:
        """Return the usable samples of a split, each with its set and rewards; keep and report the bad rows."""
        samples, self.bad_rows[split] = filter_rows(
            map(self._with_answer, require_samples(rows(split), rows)),
            f"{self._name} {split}",
            self._reading.max_bad_rows,
            self.optional,
            self._images,
            not has_closing_turns,
        )
        named = []
        for sample in samples:
            named.append(replace(sample, dataset=sample.dataset or self._name, rewards=self._rewards_of(sample)))
        return named

    def _rewards_of(self, sample: Sample) -> Mapping[str, float | None] | None:
        """Return the rewards that judge a sample: its own, or else those of the data set."""
        if sample.rewards is None:
            return self.rewards
        return sample.rewards

    def _with_answer(self, row: Sample | BadRow) -> Sample | BadRow:
        """Return a row, or a bad row for one without the answer that a reward needs which judges it."""
        if isinstance(row, BadRow) or row.answer or not self._judges:
            return row
        judged = replace(row, rewards=self._rewards_of(row))
        names = reward_weights_of(judged, own_weights(self._judges))
        for reward in self._judges:
            if reward.needs_answer and reward.name in names:
                return BadRow(f"missing, and the reward {reward.name} judges by it", "answer", row.source)
        return row
