"""A task: a data set and a reward. `config.yaml` names both by their class_path."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from lit_rlvr import Completion, PromptDataModule, Reward, RewardResult, Sample, Split


class Backwards(PromptDataModule):
    """Four letters to write backwards."""

    def rows(self, split: Split) -> Iterator[Sample]:
        """Yield the questions of a split with their answers, from any source.

        `row` holds what else a reward needs. Its `solution` is the target of the warm start.
        """
        words = []
        for letters in itertools.product("abcdefgh", repeat=4):
            words.append("".join(letters))
        random.Random(0).shuffle(words)
        for word in {"train": words[128:], "validation": words[:128], "test": []}[split]:
            yield Sample(id=word, prompt=f"{word} backwards:", answer=word[::-1], row={"solution": word[::-1]})


class InPlace(Reward):
    """The share of letters in the right place. `correct`, which accuracy counts, means all of them."""

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        text = completion.text.strip()
        expected = sample.answer
        right = sum(a == b for a, b in zip(text, expected, strict=False))
        return RewardResult(value=right / max(len(text), len(expected)), correct=text == expected)
