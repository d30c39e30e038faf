"""Generated sums of several numbers, worked out one step a line: the harder task of the studies of claims."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from lit_rlvr.datamodules.base import Split
from lit_rlvr.datamodules.generated import GeneratedDataModule
from lit_rlvr.errors import MOST, UserError
from lit_rlvr.seeds import derive_seed
from lit_rlvr.types import Sample


class MultiStepArithmetic(GeneratedDataModule):
    """ "A+B-C=" to be worked out from left to right, one step a line: each line replaces the first two numbers by
    their result, and the last line is the answer. No result on the way is negative.

    A row's `solution` is the target completion for warm starts; only the last line counts for the reward.

    Args:
        terms: how many numbers a problem has, at least 2.
        high: largest number; the smallest is 1.
        problems: number of training problems, drawn by `seed`.
        held_out: number of other problems, for validation.
        tested: number of further problems, for the test set.
        system_prompt: system message, or the name of a shipped one.
    """

    def __init__(
        self,
        terms: int = 3,
        high: int = 20,
        problems: int = 3500,
        held_out: int = 128,
        tested: int = 128,
        system_prompt: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(system_prompt=system_prompt, shuffle_images=False, **kwargs)
        if terms < 2 or min(high, problems) < 1 or min(held_out, tested) < 0:
            raise UserError(
                f"terms={terms} must be at least 2, high={high} and problems={problems} at least 1, "
                f"held_out={held_out} and tested={tested} at least 0"
            )
        if terms * (problems + held_out + tested) > MOST:
            raise UserError(
                f"terms={terms}, problems={problems}, held_out={held_out}, tested={tested}: use at most {MOST} numbers "
                "in all"
            )
        sizes: dict[Split, int] = {"validation": held_out, "train": problems, "test": tested}
        self.sets = [split for split, size in sizes.items() for _ in range(size)]
        if len(self.sets) > high**terms // 2:
            raise UserError(
                f"problems={problems}, held_out={held_out}, tested={tested}: {terms} numbers up to {high} make too few "
                f"different problems; at most {high**terms // 2} in all"
            )
        self.terms, self.high = terms, high

    def rows(self, split: Split) -> Iterator[Sample]:
        """The problems of a set; no problem is in two of them."""
        rng = random.Random(derive_seed("multi_step_arithmetic", self.seed))
        drawn: dict[str, list[str]] = {}
        while len(drawn) < len(self.sets):
            question, lines = make_problem(rng, self.terms, self.high)
            drawn[question] = lines
        for (question, lines), its in zip(drawn.items(), self.sets, strict=True):
            if its == split:
                yield Sample(question, question + "=", lines[-1], row={"solution": "\n".join(lines)})


def make_problem(rng: random.Random, terms: int, high: int) -> tuple[str, list[str]]:
    """A problem such as "3+4-5", and the lines of its solution: ["7-5", "2"]."""
    total = rng.randint(1, high)
    parts, totals = [str(total)], [total]
    for _ in range(terms - 1):
        number, minus = rng.randint(1, high), rng.random() < 0.5
        if minus and number <= total:
            total -= number
            parts.append(f"-{number}")
        else:
            total += number
            parts.append(f"+{number}")
        totals.append(total)
    return "".join(parts), [f"{totals[k]}{''.join(parts[k + 1 :])}" for k in range(1, terms)]
