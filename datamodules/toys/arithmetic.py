"""Generated sums and products: the tasks of the quickstart and of the studies of claims."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.datamodules.reading.split import Split
from lit_rlvr.datamodules.toys.generated import GeneratedDataModule
from lit_rlvr.errors import UserError, refuse_all
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
        chat: the text that the model sees, by default with a system prompt.
    """

    def __init__(
        self,
        low: int = 1,
        high: int = 20,
        held_out: int = 128,
        operation: Literal["add", "multiply"] = "add",
        question: str = "What is {a} + {b}?",
        solution: str | list[str] = "{answer}",
        chat: Chat = Chat(system_prompt="You are a calculator."),  # noqa: B008
        **kwargs: Any,
    ) -> None:
        super().__init__(chat=chat, **kwargs)
        numbers = range(low, high + 1)
        self.pairs = [(a, b) for a in numbers for b in numbers]
        if not 0 <= held_out < len(self.pairs):
            raise UserError(
                f"held_out={held_out}: {low}..{high} makes {len(self.pairs)} pairs, one must be left to train on"
            )
        if "{a}" not in question or "{b}" not in question:
            raise UserError(f"question: {question!r} must hold {{a}} and {{b}}")
        self.operation = operation
        self.question = question
        self.solution = solution
        self.held_out = held_out

    def rows(self, split: Split) -> Iterator[Sample]:
        """Yield the training pairs or the held-out pairs; there is no test set."""
        held_out = set(random.Random(derive_seed("split", self.seed)).sample(self.pairs, self.held_out))
        for pair in self.pairs:
            own = "validation" if pair in held_out else "train"
            if split == own:
                yield self._sample(*pair)

    def _sample(self, a: int, b: int) -> Sample:
        if self.operation == "add":
            sign = "+"
            answer = str(a + b)
        else:
            sign = "*"
            answer = str(a * b)

        def filled(text: str) -> str:
            return text.replace("{a}", str(a)).replace("{b}", str(b)).replace("{answer}", answer)

        solution: str | list[str]
        if isinstance(self.solution, str):
            solution = filled(self.solution)
        else:
            solution = [filled(turn) for turn in self.solution]
        return Sample(f"{a}{sign}{b}", filled(self.question), answer, row={"a": a, "b": b, "solution": solution})


class MultiStepArithmetic(GeneratedDataModule):
    """ "A+B-C=", which the model works out from left to right, one step a line.

    Each line replaces the first two numbers by their result, and the last line is the answer. No intermediate result
    is negative. A row's `solution` is the target completion for warm starts; only the last line counts for the reward.

    Args:
        terms: how many numbers a problem has, at least 2; a list takes the lengths in turn, and a problem's
            category is its length, such as "4 terms".
        high: largest number; the smallest is 1.
        problems: number of training problems, drawn by `seed`.
        held_out: number of other problems, for validation.
        tested: number of further problems, for the test set.
    """

    def __init__(
        self,
        terms: int | list[int] = 3,
        high: int = 20,
        problems: int = 3500,
        held_out: int = 128,
        tested: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(terms, list):
            lengths = terms
        else:
            lengths = [terms]
        if min(lengths, default=0) < 2 or min(high, problems) < 1 or min(held_out, tested) < 0:
            raise UserError(
                f"terms={terms} must be at least 2, high={high} and problems={problems} at least 1, "
                f"held_out={held_out} and tested={tested} at least 0"
            )
        sizes: dict[Split, int] = {"validation": held_out, "train": problems, "test": tested}
        self.sets: list[Split] = []
        for split, size in sizes.items():
            self.sets += [split] * size
        self.lengths = lengths
        self.high = high
        too_few = []
        for length, count in Counter(lengths).items():
            # of two terms there are half as many again, so drawing them ends
            if len(self.sets) * count > high**length * len(lengths):
                too_few.append(
                    f"problems={problems}, held_out={held_out}, tested={tested}: {length} numbers up to {high} make "
                    f"too few different problems; at most {high**length} of this length in all"
                )
        refuse_all(too_few)

    def rows(self, split: Split) -> Iterator[Sample]:
        """Yield the problems of a set; no two sets share a problem."""
        rng = random.Random(derive_seed("multi_step_arithmetic", self.seed))
        drawn: dict[str, list[str]] = {}
        while len(drawn) < len(self.sets):
            question, lines = make_problem(rng, self.lengths[len(drawn) % len(self.lengths)], self.high)
            drawn[question] = lines
        for (question, lines), owner in zip(drawn.items(), self.sets, strict=True):
            if owner == split:
                category = f"{len(lines) + 1} terms" if len(self.lengths) > 1 else ""
                row = {"solution": "\n".join(lines)}
                yield Sample(question, question + "=", lines[-1], row=row, category=category)


def make_problem(rng: random.Random, terms: int, high: int) -> tuple[str, list[str]]:
    """Draw a problem such as "3+4-5", and return it with the lines of its solution: ["7-5", "2"]."""
    numbers = [rng.randint(1, high)]
    for _ in range(terms - 1):
        number = rng.randint(1, high)
        is_subtracted = rng.random() < 0.5
        if is_subtracted and number <= sum(numbers):
            number = -number
        numbers.append(number)
    parts = [str(numbers[0]), *(f"{number:+}" for number in numbers[1:])]
    lines = []
    for done in range(2, terms + 1):
        result = sum(numbers[:done])
        rest = "".join(parts[done:])
        lines.append(f"{result}{rest}")
    return "".join(parts), lines
