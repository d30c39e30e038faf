"""Draws a given number of rows of each modality, and keeps training apart from evaluation."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from lit_rlvr.datamodules.reading.split import draw
from lit_rlvr.errors import UserError
from lit_rlvr.seeds import derive_seed
from lit_rlvr.types import Sample

Counts = Mapping[str, int]
Disjoint = Literal["image", "question"]


def draw_counts(samples: Sequence[Sample], counts: Counts | None, seed: int, option: str) -> list[Sample]:
    """`counts[category]` samples of each category, drawn by seed, in file order; all samples without counts.

    Raises:
        UserError: a category has too few samples.
    """
    if counts is None:
        return list(samples)
    drawn: set[str] = set()
    for name, count in counts.items():
        rows = [sample for sample in samples if sample.category == name]
        if len(rows) < count:
            raise UserError(f"{option}: {count} rows of {name} are wanted, {len(rows)} are left")
        drawn |= {sample.id for sample in draw(rows, count, derive_seed(seed, name))}
    return [sample for sample in samples if sample.id in drawn]


def evaluation_pool(samples: Sequence[Sample], evaluation: Counts, training: Counts, seed: int) -> list[Sample]:
    """The rows that evaluation is drawn from, chosen so that enough questions are left to train on.

    Whole questions, in an order drawn by seed, join the pool until it has enough rows of each modality. If a modality
    is also trained on, the pool gets evaluation's share of it. Questions that training cannot use join first.
    """
    total = Counter(sample.category for sample in samples)
    needed = {
        name: max(count, total[name] * count // (count + training[name]) if name in training else 0)
        for name, count in evaluation.items()
    }
    rows_of: dict[str, Counter[str]] = {}
    for sample in samples:
        rows_of.setdefault(question(sample), Counter())[sample.category] += 1
    order = sorted(rows_of)
    random.Random(derive_seed("questions", seed)).shuffle(order)
    order.sort(key=lambda text: bool(rows_of[text].keys() & training.keys()))  # stable; unusable for training first
    pool: set[str] = set()
    have: Counter[str] = Counter()
    for text in order:
        lacks = any(have[name] < count and rows_of[text][name] for name, count in needed.items())
        if lacks or not rows_of[text].keys() & training.keys():
            pool.add(text)
            have += rows_of[text]
    return [sample for sample in samples if question(sample) in pool]


def apart(samples: Sequence[Sample], evaluation: Sequence[Sample], disjoint: Disjoint) -> list[Sample]:
    """The samples that share no image with the evaluation and, for `question`, no question either."""
    images = {key for sample in evaluation for key in keys(sample)}
    questions = {question(sample) for sample in evaluation} if disjoint == "question" else set()
    return [s for s in samples if images.isdisjoint(keys(s)) and question(s) not in questions]


def keys(sample: Sample) -> Sequence[str]:
    """Content hashes of the sample's images."""
    return getattr(sample.images, "keys", ())


def question(sample: Sample) -> str:
    """The words of the question, without its options, case and punctuation."""
    text = sample.row.get("question") or sample.row.get("Question") or sample.prompt
    return " ".join(re.findall(r"\w+", str(text).lower()))
