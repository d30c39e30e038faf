"""Finds questions that stand in training and in validation, and rows that repeat an earlier one."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lit_rlvr.datamodules.reading.rows import name_few, say
from lit_rlvr.errors import UserError
from lit_rlvr.types import Prompt

Pair = tuple[Prompt, Prompt]
"""A prompt, and the earlier one that it repeats."""


APART = "which only an environment can tell apart"


@dataclass
class Questions:
    """The questions of a set, and the rows that repeat one.

    Two prompts ask the same question if the model sees the same tokens and images. Where a set has several answers to a
    question, something that the model does not see tells them apart, such as a number that an environment hides.

    Args:
        first: question -> the first prompt that asks it.
        answers: question with several answers -> answer -> the first prompt that has it.
        repeated: rows with the question and the answer of an earlier one.
        contradicted: rows with the question of an earlier one and another answer.
    """

    first: dict[bytes, Prompt] = field(default_factory=dict)
    answers: dict[bytes, dict[str, Prompt]] = field(default_factory=dict)
    repeated: list[Pair] = field(default_factory=list)
    contradicted: list[Pair] = field(default_factory=list)

    def add(self, prompt: Prompt) -> None:
        key, answer = question(prompt), prompt.sample.answer
        first = self.first.setdefault(key, prompt)
        if first is prompt:
            return
        known = self.answers.get(key, {first.sample.answer: first})
        if answer in known:
            self.repeated.append((prompt, known[answer]))
        else:
            self.contradicted.append((prompt, first))
            self.answers.setdefault(key, known)[answer] = prompt

    def find(self, prompt: Prompt) -> Prompt | None:
        """The prompt of this set that is the same, if there is one."""
        key = question(prompt)
        if key in self.answers:
            return self.answers[key].get(prompt.sample.answer)
        return self.first.get(key)


def question(prompt: Prompt) -> bytes:
    """A hash of what the model sees: the tokens and the images."""
    seen = hashlib.sha256(array("q", prompt.token_ids).tobytes())
    seen.update(" ".join(getattr(prompt.sample.images, "keys", ())).encode())
    return seen.digest()[:16]


def check_repeats(prompts: Iterable[Prompt], what: str) -> Questions:
    """The questions of a set; reports rows that repeat one, with the same answer or another."""
    found = Questions()
    for prompt in prompts:
        found.add(prompt)
    for pairs, does in (
        (found.repeated, "repeat the question and answer of an earlier row"),
        (found.contradicted, f"give another answer to the question of an earlier row, {APART}"),
    ):
        if pairs:
            rows = len(found.first) + len(found.repeated) + len(found.contradicted)
            say(f"{what}: {len(pairs)} of {rows} rows {does}: {_named(pairs)}")
    return found


def check_held_out(train: Questions, validation: Sequence[Prompt], name: str, refuse: bool) -> None:
    """Report how many validation questions also stand in training.

    Args:
        name: the validation set's.
        refuse: raise an error if all of them do.

    Raises:
        UserError: all of them do.
    """
    shared = [(prompt, same) for prompt in validation if (same := train.find(prompt)) is not None]
    if refuse and shared and len(shared) == len(validation):
        raise UserError(
            f"{name}: all {len(shared)} validation questions also stand in training: {_named(shared)}; give other "
            "rows, hold some out with validation_split, or validate on training rows as a further set (also_validate)"
        )
    if shared:
        say(
            f"{name}: {len(shared)} of {len(validation)} validation questions also stand in training, and count in its "
            f"accuracy: {_named(shared)}"
        )


def _named(pairs: Sequence[Pair]) -> str:
    """The first few rows, each with the one that it repeats."""
    return name_few([f"{row.sample.source} ({other.sample.source})" for row, other in pairs])
