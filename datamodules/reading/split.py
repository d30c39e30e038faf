"""Decides which rows are held out, drawn or dropped."""

from __future__ import annotations

import random
from dataclasses import replace
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
