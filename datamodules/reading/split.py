"""Decides which rows are held out, drawn or dropped, and finds questions that repeat."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from lit_rlvr.datamodules.reading.rows import name_few, say
from lit_rlvr.errors import UserError
from lit_rlvr.seeds import derive_seed
from lit_rlvr.types import Prompt, Sample

T = TypeVar("T")


def hold_out(rows: int, size: int | float, seed: int) -> set[int]:
    """Indices of the rows taken for validation.

    Args:
        rows: number of rows.
        size: how many to take (an integer), or which share of them (a fraction below 1).
        seed: the data seed.

    Raises:
        UserError: one of the two sets would be empty.
    """
    if isinstance(size, float) and not 0 < size < 1:
        raise UserError(f"validation_split={size}: give an integer (rows) or a share between 0 and 1")
    count = max(1, round(rows * size)) if isinstance(size, float) else size
    if not 0 < count < rows:
        raise UserError(f"validation_split={size}: {count} of {rows} training rows cannot be held out")
    return set(random.Random(derive_seed("split", seed)).sample(range(rows), count))


def draw(items: list[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` of the items, drawn by seed, in their original order; all of them without a limit."""
    if limit is None or limit >= len(items):
        return items
    chosen = random.Random(derive_seed("limit", seed)).sample(range(len(items)), limit)
    return [items[i] for i in sorted(chosen)]


def deal_images(samples: list[Sample], seed: int) -> list[Sample]:
    """The samples with the images of others: in a random order, each takes the images of the next sample that has the
    same number of images."""
    dealt = list(samples)
    random_order = random.Random(derive_seed("deal images", seed))
    for count in sorted({len(sample.images) for sample in samples} - {0}):
        places = [i for i, sample in enumerate(samples) if len(sample.images) == count]
        random_order.shuffle(places)
        for i, other in zip(places, places[1:] + places[:1], strict=True):
            dealt[i] = replace(samples[i], images=samples[other].images)
    return dealt


def drop_long(prompts: list[Prompt], max_tokens: int, what: str) -> tuple[list[Prompt], list[str]]:
    """The prompts of at most `max_tokens` tokens, and the ids of the others, which are counted and reported.

    Raises:
        UserError: all of them are too long.
    """
    long = [prompt for prompt in prompts if len(prompt.token_ids) > max_tokens]
    if long:
        named = name_few([f"{prompt.sample.id} ({len(prompt.token_ids)} tokens)" for prompt in long])
        text = f"{len(long)} of {len(prompts)} prompts are longer than max_prompt_tokens={max_tokens}: {named}"
        if len(long) == len(prompts):
            raise UserError(f"{what}: {text}. No prompt is left: raise max_prompt_tokens")
        say(f"{what}: dropped, {text}")
    return [p for p in prompts if len(p.token_ids) <= max_tokens], [p.sample.id for p in long]


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
