"""Base classes of generated data sets, which read no files."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from PIL import Image

from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.datamodules.base import PromptDataModule, Split
from lit_rlvr.datamodules.reading.images import ImageOptions
from lit_rlvr.datamodules.reading.split import ReadingOptions
from lit_rlvr.types import Sample


class GeneratedDataModule(PromptDataModule):
    """The base of generated data sets: it hides the options that only files need."""

    has_answer_lists = False

    def __init__(self, reading: ReadingOptions = ReadingOptions(max_bad_rows=0.0), **kwargs: Any) -> None:  # noqa: B008
        super().__init__(
            train=None,
            validation=None,
            test=None,
            validation_split=None,
            columns=None,
            reading=reading,
            images=ImageOptions(),
            **kwargs,
        )


SIDE = 84
"""Pixels of an image's side: 6 x 6 patches of Qwen2.5-VL's vision tower, 9 image tokens."""


class DrawnPictures(GeneratedDataModule):
    """Generated pictures; a subclass draws each one and returns its answer.

    A row's `solution` is the target completion for warm starts.

    Args:
        pictures: number of training pictures.
        held_out: number of other pictures, for validation.
        question: the user's text.
    """

    options: tuple[str, ...] = ()
    """Options of a multiple-choice question, whose answer is a letter."""

    def __init__(self, pictures: int, held_out: int, question: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.counts = {"train": pictures, "validation": held_out, "test": 0}
        self.question = question

    @abstractmethod
    def draw(self, rng: random.Random) -> tuple[Image.Image, str]:
        """Draw an RGB picture with `rng` as the only source of randomness; return it with its answer."""

    def rows(self, split: Split) -> Iterator[Sample]:
        """Yield the training pictures or the held-out ones, which are never the same; there is no test set."""
        held_out = {picture.tobytes() for picture, _ in self._draw("validation", self.counts["validation"])}
        drawn = self._draw(split, self.counts[split])
        for i, (picture, answer) in enumerate(drawn):
            if split == "validation" or picture.tobytes() not in held_out:
                row = {"answer": answer, "solution": f"\\boxed{{{answer}}}"}
                yield Sample(f"{split}-{i}", self.question, answer, (picture,), row, options=self.options)

    def _draw(self, split: Split, count: int) -> Iterator[tuple[Image.Image, str]]:
        for i in range(count):
            yield self.draw(random.Random(derive_seed("pictures", self.seed, split, i)))
