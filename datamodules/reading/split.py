"""The choice of rows: hold out, draw, drop long prompts, find repeated questions."""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.datamodules.reading.readers import cell_to_json
from lit_rlvr.datamodules.reading.rows import abbreviate, rank_zero_warn
from lit_rlvr.errors import UserError
from lit_rlvr.media import kinds_of
from lit_rlvr.types import Prompt, Sample

_T = TypeVar("_T")

Split = Literal["train", "validation", "test"]

STAGE_SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
}
"""The sets that each trainer stage needs."""


def hold_out(rows: int, size: int | float, seed: int) -> set[int]:
    """Return the indices of the rows to hold out for validation.

    Args:
        rows: number of rows.
        size: their number (an integer), or their share (a fraction below 1).
        seed: the data seed.

    Raises:
        UserError: one of the two sets would be empty.
    """
    if isinstance(size, float) and not 0 < size < 1:
        raise UserError(f"validation_split={size}: give an integer (rows) or a share between 0 and 1")
    if isinstance(size, float):
        count = max(1, round(rows * size))
    else:
        count = size
    if not 0 < count < rows:
        raise UserError(f"validation_split={size}: {count} of {rows} training rows cannot be held out")
    return set(random.Random(derive_seed("split", seed)).sample(range(rows), count))


def split_off(samples: Sequence[Sample], size: int | float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Return the samples to train on, and those that are held out for validation; see `hold_out`."""
    held_out = hold_out(len(samples), size, seed)
    train = []
    validation = []
    for i, sample in enumerate(samples):
        if i in held_out:
            validation.append(sample)
        else:
            train.append(sample)
    return train, validation


def subsample(items: list[_T], limit: int | None, seed: int) -> list[_T]:
    """Draw at most `limit` items by seed, in their original order; return all of them without a limit."""
    if limit is None or limit >= len(items):
        return items
    chosen = random.Random(derive_seed("limit", seed)).sample(range(len(items)), limit)
    return [items[i] for i in sorted(chosen)]


def exchange_images(samples: list[Sample], seed: int) -> list[Sample]:
    """Give each sample the images of another one with as many images and videos in the same order, in a random cycle.

    Raises:
        UserError: no sample has images.
    """
    if samples and not any(sample.images for sample in samples):
        raise UserError("data.evaluation.shuffle_images: the rows have no images; leave it out")
    exchanged = list(samples)
    random_order = random.Random(derive_seed("deal images", seed))
    layouts = [kinds_of(sample.images) for sample in samples]
    for kinds in sorted(set(map(tuple, layouts)) - {()}, key=lambda kinds: (len(kinds), kinds)):
        places = []
        for i, layout in enumerate(layouts):
            if tuple(layout) == kinds:
                places.append(i)
        random_order.shuffle(places)
        for i, other in zip(places, places[1:] + places[:1], strict=True):
            exchanged[i] = replace(samples[i], images=samples[other].images)
    return exchanged


FAR_TOO_LONG, CHARACTERS = 8, 16
"""Prompts with more than this multiple of the allowed tokens are not tokenised to their end; and how many characters
of a text are tokenised first, for each token of that many."""


def drop_long(prompts: list[Prompt], max_tokens: int, what: str) -> tuple[list[Prompt], list[str]]:
    """Return the prompts of at most `max_tokens` tokens and the ids of the others; report the others.

    Raises:
        UserError: all of them are too long.
    """
    too_long = []
    for prompt in prompts:
        if len(prompt.token_ids) > max_tokens:
            too_long.append(prompt)
    if too_long:
        limit = FAR_TOO_LONG * max_tokens
        lengths = ((p.sample.id, len(p.token_ids)) for p in too_long)
        examples_with_lengths = []
        for name, n in lengths:
            examples_with_lengths.append(f"{name} ({n} tokens{' or more' if n >= limit else ''})")
        examples = abbreviate(examples_with_lengths)
        text = f"{len(too_long)} of {len(prompts)} prompts are longer than max_prompt_tokens={max_tokens}: {examples}"
        if len(too_long) == len(prompts):
            raise UserError(
                f"{what}: {text}. No prompt is left: raise data.init_args.reading.max_prompt_tokens "
                "(of evaluate: --max_prompt_tokens)"
            )
        rank_zero_warn(f"{what}: dropped, {text}")
    short = []
    for p in prompts:
        if len(p.token_ids) <= max_tokens:
            short.append(p)
    return short, [p.sample.id for p in too_long]


def question(prompt: Prompt, whole_row: bool) -> bytes:
    """Return a hash of the tokens and images, which are all that the model sees.

    With `whole_row`, it is of the row too, of which an environment may use any column.
    """
    seen = hashlib.sha256(array("q", prompt.token_ids).tobytes())
    seen.update(" ".join(getattr(prompt.sample.images, "keys", ())).encode())
    if whole_row:
        seen.update(json.dumps(cell_to_json(prompt.sample.row), sort_keys=True).encode())
    return seen.digest()[:16]


Questions = dict[bytes, dict[str, Prompt]]
"""Question -> answer -> the first prompt that has it."""


def index_questions(prompts: Iterable[Prompt], whole_row: bool) -> Questions:
    """Index the questions of a set by `question`.

    A set may have several answers to a question if they depend on something hidden from the model.
    """
    questions: Questions = {}
    for prompt in prompts:
        known = questions.setdefault(question(prompt, whole_row), {})
        references = prompt.sample.references
        if known.keys().isdisjoint(references):
            known.update(dict.fromkeys(references, prompt))
    return questions


def find_question(prompt: Prompt, known: Mapping[str, Prompt]) -> Prompt | None:
    """Return the prompt with the same answer among those of a question; if all have one answer, the first."""
    other = next((known[answer] for answer in prompt.sample.references if answer in known), None)
    if other is None and len({*map(id, known.values())}) == 1:
        return next(iter(known.values()))
    return other


def check_held_out(train: Questions, validation: Sequence[Prompt], name: str, whole_row: bool, refuse: bool) -> None:
    """Report validation questions that are also in the training set.

    Args:
        train: the questions of the training set.
        validation: the prompts of the validation set.
        name: the validation set's name.
        whole_row: compare whole rows, as for `train`.
        refuse: raise an error if the training set has all of them.

    Raises:
        UserError: the training set has all of them.
    """
    pairs = []
    for prompt in validation:
        pairs.append((prompt, find_question(prompt, train.get(question(prompt, whole_row), {}))))
    shared = []
    for prompt, other in pairs:
        if other is not None:
            shared.append((prompt, other))
    if refuse and shared and len(shared) == len(validation):
        raise UserError(
            f"{name}: all {len(shared)} validation questions also stand in training: {_pairs_text(shared)}; give other "
            "rows, hold some out with validation_split, or validate on training rows as a further set "
            "(evaluation.also_validate)"
        )
    if shared:
        rank_zero_warn(
            f"{name}: {len(shared)} of {len(validation)} validation questions also stand in training, and count in its "
            f"accuracy: {_pairs_text(shared)}"
        )


def _pairs_text(pairs: Sequence[tuple[Prompt, Prompt]]) -> str:
    """Join the first few rows, each with the one that it repeats."""
    return abbreviate([f"{row.sample.source} ({other.sample.source})" for row, other in pairs])
