"""Generated sums of two numbers: the quickstart's task."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from datamodules.base import Split
from datamodules.generated import GeneratedDataModule
from lit_rlvr.errors import UserError
from lit_rlvr.seeds import derive_seed
from lit_rlvr.types import Sample


class Arithmetic(GeneratedDataModule):
    """ "What is A + B?" for all pairs in a range, with some pairs held out for validation.

    A row's `solution` is the target completion for warm starts.

    Args:
        low: smallest number.
        high: largest number.
        held_out: how many of the (high - low + 1)**2 pairs form the validation set, drawn by `seed`.
        question: the user's text, with `{a}` and `{b}` for the numbers; the answer is their sum.
        system_prompt: system message, or the name of a shipped one.
    """

    def __init__(
        self,
        low: int = 1,
        high: int = 20,
        held_out: int = 128,
        question: str = "What is {a} + {b}?",
        system_prompt: str | None = "You are a calculator.",
        **kwargs: Any,
    ) -> None:
        super().__init__(system_prompt=system_prompt, shuffle_images=False, **kwargs)
        numbers = range(low, high + 1)
        self.pairs = [(a, b) for a in numbers for b in numbers]
        if not 0 <= held_out < len(self.pairs):
            raise UserError(
                f"held_out={held_out}: {low}..{high} makes {len(self.pairs)} pairs, one must be left to train on"
            )
        if "{a}" not in question or "{b}" not in question:
            raise UserError(f"question: {question!r} must hold {{a}} and {{b}}")
        self.question, self.held_out = question, held_out

    def rows(self, split: Split) -> Iterator[Sample]:
        """Training pairs and held-out pairs; there is no test set."""
        draw = random.Random(derive_seed("split", self.seed))
        held_out = set(draw.sample(self.pairs, self.held_out))
        for a, b in self.pairs:
            if split == ("validation" if (a, b) in held_out else "train"):
                question = self.question.replace("{a}", str(a)).replace("{b}", str(b))
                yield Sample(f"{a}+{b}", question, str(a + b), row={"a": a, "b": b, "solution": str(a + b)})
