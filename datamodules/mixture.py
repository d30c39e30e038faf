"""Several data sets as one, each with its own rows, prompts, rewards and validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from lit_rlvr.common.arguments import check_within
from lit_rlvr.datamodules.base import EvaluationData, PromptDataModule
from lit_rlvr.datamodules.parts.encoder import PromptEncoder
from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.datamodules.reading.mixing import refuse_twice
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.datamodules.reading.rows import check_ids, with_distinct_ids
from lit_rlvr.datamodules.reading.split import Split
from lit_rlvr.datamodules.reading.stream import EvalLoader
from lit_rlvr.environments.base import Environment
from lit_rlvr.errors import UserError, refuse_all
from lit_rlvr.rewards.base import Reward
from lit_rlvr.types import Prompt, Sample


class Mixture(PromptDataModule):
    """Several data sets in one run: each reads, formats and validates its own rows, and may have rewards of its own.

    Without weights or a temperature, the rows of all sets form one set, and every epoch has each of them once.

    Args:
        sets: the DataModules, each with its own `name`. Their `order`, `curriculum` and `prompts_per_rollout` are the
            mixture's, and so is `evaluation` where a set has none of its own.
        weights: name of a set -> how often its prompts are drawn, in relation to the others.
        temperature: T: a set of n prompts is drawn in proportion to n^(1/T). 1 = by size; the larger, the more alike.
    """

    weights_option = "data.weights"

    def __init__(
        self,
        sets: list[PromptDataModule],
        weights: dict[str, float] | None = None,
        temperature: float | None = None,
        **kwargs: Any,
    ) -> None:
        if not sets:
            raise UserError("data.sets: give at least one data module")
        if weights is not None and temperature is not None:
            raise UserError("data: give weights or a temperature, not both")
        check_within("(0, inf)", "data", temperature=temperature)
        refuse_twice([part.name for part in sets], "data.sets", "sets are", "set `name` on one of them")
        for part in sets:
            if isinstance(part, Mixture):
                raise UserError(f"data.sets: {part.name} is a mixture itself; give its sets here")
        self.parts = list(sets)
        self.temperature = temperature
        super().__init__(
            train=None,
            validation=None,
            test=None,
            validation_split=None,
            columns=None,
            rewards=None,
            reading=ReadingOptions(max_prompt_tokens=max(part.reading.max_prompt_tokens for part in sets)),
            images=sets[0].images,
            chat=sets[0].chat,
            **kwargs,
        )
        self.weights = dict(weights or {})
        self._owners = {part.name: part for part in sets}
        problems = []
        for part in sets:
            if part.order != "shuffled" or part.success is not None or part.weights:
                problems.append(
                    f"data.sets: {part.name} has an order, a curriculum or weights of its own; set them for the whole "
                    "mixture, and leave them out here"
                )
        refuse_all(problems)
        for part in sets:
            if part.evaluation == EvaluationData():
                part.evaluation = replace(self.evaluation, also_validate=None)

    @property
    def validated(self) -> list[PromptDataModule]:
        """This DataModule, its sets, and those of `evaluation.also_validate`."""
        return [self, *(data for part in self.parts for data in part.validated), *super().validated[1:]]

    def part_of(self, sample: Sample) -> PromptDataModule:
        """Return the DataModule that a sample is of."""
        return self._owners[sample.dataset]

    # what the model sees is up to a sample's set

    def render(self, sample: Sample) -> str:
        return self.part_of(sample).render(sample)

    def encode(self, sample: Sample) -> Prompt:
        return self.part_of(sample).encode(sample)

    def encoder_of(self, sample: Sample) -> PromptEncoder:
        return self.part_of(sample).prompt_encoder

    def difficulty(self, sample: Sample) -> float:
        return self.part_of(sample).difficulty(sample)

    def use_environment(self, environment: Environment | None, rewards: Sequence[Reward] | None = None) -> None:
        chat = self.parts[0].chat
        differing = []
        if environment is not None:
            for part in self.parts:
                if (part.chat.prefill, part.chat.chat_template_kwargs) != (chat.prefill, chat.chat_template_kwargs):
                    differing.append(
                        "data.sets: with an environment, all sets need the same chat.prefill and chat_template_kwargs; "
                        f"{part.name} has others than {self.parts[0].name}"
                    )
        refuse_all(differing)
        super().use_environment(environment, rewards)

    # rows

    def setup(self, stage: str) -> None:
        for part in self.parts:
            part.use_model(self)
        super().setup(stage)

    @property
    def bad_rows(self) -> dict[str, list[BadRow]]:
        bad_rows: dict[str, list[BadRow]] = {}
        for split in self.prompts:
            bad_rows[split] = []
            if split != "validation":  # each set validates on its own
                for part in self.parts:
                    bad_rows[split] += part.bad_rows[split]
        return bad_rows

    def load(self, split: Split) -> list[Sample]:
        samples = []
        for part in self.parts:
            samples += part.load(split)
        return with_distinct_ids(samples)

    def _tokenised(self, split: Split) -> list[Prompt]:
        if split == "validation":  # each set validates on its own
            self.too_long[split] = []
            return []
        prompts_by_part = {}
        for part in self.parts:
            prompts_by_part[part.name] = part._tokenised(split)
        for part in self.parts:
            for dataset in {prompt.sample.dataset for prompt in prompts_by_part[part.name]}:
                if self._owners.setdefault(dataset, part) is not part:
                    raise UserError(f"data.sets: two sets have rows of {dataset}; rename one of the files")
        self.too_long[split] = [name for part in self.parts for name in part.too_long[split]]
        prompts = list(chain.from_iterable(prompts_by_part.values()))
        samples = with_distinct_ids([prompt.sample for prompt in prompts])
        check_ids(samples)
        if split == "train" and self.temperature is not None:
            sizes = Counter(sample.dataset for sample in samples)
            largest = max(sizes.values(), default=1)  # relative to it no weight is too large for a float
            weights = {}
            for name, size in sizes.items():
                weights[name] = (size / largest) ** (1 / self.temperature)
            self.weights = weights
        mixed = []
        for prompt, sample in zip(prompts, samples, strict=True):
            mixed.append(replace(prompt, sample=sample))
        return mixed

    def test_dataloader(self) -> list[EvalLoader]:
        loaders = []
        for part in self.parts:
            prompts = []
            for prompt in self.prompts["test"]:
                if self.part_of(prompt.sample) is part:
                    prompts.append(prompt)
            if prompts:
                size = part.evaluation.prompts_per_batch
                loaders.append(EvalLoader(prompts, size, part.name, *self._ranks(), self.prepare))
        return loaders
