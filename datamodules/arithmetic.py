"""Generated sums and products of two numbers: the quickstart's task."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Literal

from lit_rlvr.datamodules.base import Split
from lit_rlvr.datamodules.generated import GeneratedDataModule
from lit_rlvr.errors import MOST, UserError
from lit_rlvr.seeds import derive_seed
from lit_rlvr.types import Sample


class Arithmetic(GeneratedDataModule):
    """ "What is A + B?" for all pairs in a range, with some pairs held out for validation.

    A row's `solution` is the target for warm starts.

    Args:
        low: smallest number.
        high: largest number.
        held_out: how many of the (high - low + 1)**2 pairs form the validation set, drawn by `seed`.
        operation: whether the answer is the numbers' sum or their product.
        question: the user's text, with `{a}` and `{b}` for the numbers.
        solution: the target completion for warm starts, with `{a}`, `{b}` and `{answer}`; with an environment a list,
            one text per turn of the model.
        system_prompt: system message, or the name of a shipped one.
    """

    def __init__(
        self,
        low: int = 1,
        high: int = 20,
        held_out: int = 128,
        operation: Literal["add", "multiply"] = "add",
        question: str = "What is {a} + {b}?",
        solution: str | list[str] = "{answer}",
        system_prompt: str | None = "You are a calculator.",
        **kwargs: Any,
    ) -> None:
        super().__init__(system_prompt=system_prompt, shuffle_images=False, **kwargs)
        numbers = range(low, high + 1)
        if len(numbers) ** 2 > MOST:
            raise UserError(f"low={low}, high={high} make {len(numbers) ** 2} pairs; use at most {MOST}")
        self.pairs = [(a, b) for a in numbers for b in numbers]
        if not 0 <= held_out < len(self.pairs):
            raise UserError(
                f"held_out={held_out}: {low}..{high} makes {len(self.pairs)} pairs, one must be left to train on"
            )
        if "{a}" not in question or "{b}" not in question:
            raise UserError(f"question: {question!r} must hold {{a}} and {{b}}")
        self.operation, self.question, self.solution, self.held_out = operation, question, solution, held_out

    def rows(self, split: Split) -> Iterator[Sample]:
        """Training pairs and held-out pairs; there is no test set."""
        draw = random.Random(derive_seed("split", self.seed))
        held_out = set(draw.sample(self.pairs, self.held_out))
        for a, b in self.pairs:
            if split == ("validation" if (a, b) in held_out else "train"):
                sign, answer = ("+", a + b) if self.operation == "add" else ("*", a * b)
                question, *turns = (
                    text.replace("{a}", str(a)).replace("{b}", str(b)).replace("{answer}", str(answer))
                    for text in (self.question, *([self.solution] if isinstance(self.solution, str) else self.solution))
                )
                solution = turns[0] if isinstance(self.solution, str) else turns
                yield Sample(f"{a}{sign}{b}", question, str(answer), row={"a": a, "b": b, "solution": solution})
