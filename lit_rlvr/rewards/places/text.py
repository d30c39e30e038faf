"""Finds boxes and points in a text, in the forms that models write."""

from __future__ import annotations

import re

from lit_rlvr.types import Completion

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"[\[(]{_NUMBER},{_NUMBER}(?:[\])]\s*,\s*[\[(]|,){_NUMBER},{_NUMBER}[\])]")
"""[x1, y1, x2, y2], also in JSON such as {"bbox_2d": [...]}, and (x1, y1), (x2, y2)."""
_LOCATIONS = re.compile(r"<loc(\d{4})>" * 4)
"""The four tokens of a box of PaliGemma."""
_POINTS = (
    re.compile(rf"[\[(]{_NUMBER},{_NUMBER}[\])]"),
    re.compile(rf"<points?>{_NUMBER}[ ,]{_NUMBER}</points?>"),
    re.compile(rf'\bx\d*="{_NUMBER}"\s+y\d*="{_NUMBER}"'),
)
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
MOST_PLACES = 256
"""The most places in a text; of more, none counts."""
LARGEST = 1e9
"""The largest coordinate; of a text with a larger one, no place counts: its areas could be infinite."""

Numbers = list[tuple[float, ...]]


def answer_text(completion: Completion) -> str:
    """Return the text behind the thoughts, of which only the last <answer> tags count, if there are any."""
    text = completion.answer
    return str([text, *_ANSWER.findall(text)][-1])


def find_boxes(text: str) -> Numbers:
    """Return the four numbers of each box in a text, in order."""
    return _places([found.groups() for pattern in (_BOX, _LOCATIONS) for found in pattern.finditer(text)])


def find_points(text: str) -> Numbers:
    """Return the two numbers of each point in a text; without points, the centres of its boxes."""
    outside_boxes = _BOX.sub(" ", text)
    found = []
    for pattern in _POINTS:
        for point in pattern.finditer(outside_boxes):
            found.append(point.groups())
    points = _places(found)
    if points:
        return points
    return [((a + c) / 2, (b + d) / 2) for a, b, c, d in find_boxes(text)]


def _places(found: list[tuple[str, ...]]) -> Numbers:
    if len(found) > MOST_PLACES:
        return []
    places = []
    for numbers in found:
        places.append(tuple(map(float, numbers)))
    if any(abs(number) > LARGEST for place in places for number in place):
        return []
    return places
