"""Places in a prompt's image, drawn over it: those of the reference and those of each completion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lit_rlvr.commands.report.prompts import verdict_text


class Mark(NamedTuple):
    """A shape over an image.

    Args:
        kind: its class in `page.css`: reference, right or wrong; with ` dot` for a point.
        points: its corners for SVG, in thousandths of the image's sides.
        title: what it is.
    """

    kind: str
    points: str
    title: str


def place_marks(completions: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """Return the places of a group: those of the completions, and over them those of the reference.

    Args:
        completions: lines of completions.jsonl or completions of a saved group; `places` has the places, if a reward
            judges them.
    """
    marks = []
    reference: Any = []
    for number, completion in enumerate(completions):
        places = completion.get("places")
        if not isinstance(places, Mapping):
            continue
        reference = places.get("reference")
        judgement = verdict_text(completion)
        kind = {"correct": "right", "wrong": "wrong"}.get(judgement, "unknown")
        title = f"completion {completion.get('sample', number)}: {judgement}"
        for corners in _shapes(places.get("answer")):
            marks.append(_mark(kind, corners, title))
    return marks + [_mark("reference", corners, "reference") for corners in _shapes(reference)]


def _mark(kind: str, corners: Sequence[tuple[float, float]], title: str) -> Mark:
    if len(corners) == 1:
        kind = f"{kind} dot"
        corners = [*corners, *corners]  # a line without a length, whose round ends are a dot
    elif len(corners) == 2:
        (left, top), (right, bottom) = corners
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    points = " ".join(f"{1000 * x:.1f},{1000 * y:.1f}" for x, y in corners)
    return Mark(kind, points, title)


def _shapes(places: Any) -> Iterator[list[tuple[float, float]]]:
    """Yield the corners of each place, without what is none: a file may hold anything."""
    for place in places if isinstance(places, list) else []:
        if not isinstance(place, list) or not place or len(place) % 2:
            continue
        if all(isinstance(number, int | float) and math.isfinite(number) for number in place):
            yield list(zip(place[::2], place[1::2], strict=True))
