"""What rewards of places share: references of any layout, and coordinates as a model writes them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from lit_rlvr.common.columns import as_object, lookup
from lit_rlvr.common.packages import require
from lit_rlvr.errors import UserError
from lit_rlvr.media import Coordinates
from lit_rlvr.rewards.base import Reward
from lit_rlvr.types import Places, Sample

Units = Literal["pixels", "fractions", "thousandths"]
BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box", "point_2d", "point")

MARGIN = 0.001
"""How far a reference may reach out of its image, as a share of a side: annotations are rounded."""


class PlacesReward(Reward):
    """The base of rewards of places in the one image of a row.

    All places are compared as fractions of the image's width and height.

    Args:
        reference: the units of the references: pixels of the image's file, fractions of its sides, or thousandths.
        written: the units in which the model writes: pixels of the file, or thousandths; auto = those of its family, in
            the size that it sees.
        y_first: the model writes y before x; null = as its family does.
        layout: the numbers of a box in the references: two corners (x1, y1, x2, y2), or as COCO's a corner, width and
            height.
        column: the column that has the references; null = the answer.
        kwargs: `weight`, `correct_from`, `name`, `isolate` and `truncated_is_wrong` of every reward.

    Raises:
        UserError: scipy is not installed.
    """

    reports_correct = True

    def __init__(
        self,
        reference: Units = "pixels",
        written: Literal["auto", "pixels", "thousandths"] = "auto",
        y_first: bool | None = None,
        layout: Literal["corners", "coco"] = "corners",
        column: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require("scipy", f"rewards.{type(self).__name__}", "scipy>=1.15")
        self.reference = reference
        self.written = written
        self.y_first = y_first
        self.layout = layout
        self.column = column
        self.needs_answer = column is None

    def check_reference(self, sample: Sample) -> None:
        self.targets(sample)

    @abstractmethod
    def targets(self, sample: Sample) -> list[np.ndarray]:
        """Return the references of a row as fractions, each (K, 2).

        Raises:
            UserError: they cannot be read.
        """

    def numbers(self, sample: Sample) -> list[list[float]]:
        """Return the numbers of each reference of a row.

        Raises:
            UserError: there are none.
        """
        where = sample.source or sample.id
        value = as_object(sample.label if self.column is None else lookup(sample.row, self.column))
        items = value if isinstance(value, list) and value and not _is_number(value[0]) else [value]
        places = [_numbers_in(item) for item in items]
        if self.column is None and sample.aliases:
            raise UserError(
                f"{where}: the answer is a list of which any item is right; set data.reading.answers: object, so that "
                f"rewards.{type(self).__name__} sees the whole list"
            )
        if not all(places):
            raise UserError(f"{where}: rewards.{type(self).__name__}: no places as lists of numbers in {value!r:.80}")
        return places

    def as_fractions(self, numbers: Sequence[float], sample: Sample) -> np.ndarray:
        """Return the points (K, 2) of a reference as fractions of the image's width and height; four numbers are a box.

        Raises:
            UserError: it is no box, reaches out of its image, or lies in its first pixel.
        """
        where = f"{sample.source or sample.id}: the reference {numbers}"
        if len(numbers) == 4 and self.layout == "coco":
            x, y, width, height = numbers
            numbers = [x, y, x + width, y + height]
        if len(numbers) == 4 and (numbers[0] >= numbers[2] or numbers[1] >= numbers[3]):
            raise UserError(
                f"{where} is no box x1, y1, x2, y2 with x1 < x2 and y1 < y2; for COCO's width and height set "
                f"rewards.{type(self).__name__}.layout: coco"
            )
        points = np.array(numbers, float).reshape(-1, 2)
        is_whole = bool((points == points.round()).all())
        if self.reference == "pixels" and points.max() <= 1 and not (is_whole and len(points) == 1):
            raise UserError(
                f"{where} lies in the first pixel of its image; for fractions of its sides set "
                f"rewards.{type(self).__name__}.reference: fractions"
            )
        if self.reference == "thousandths":
            points = points / 1000
        elif self.reference == "pixels":
            points = points / np.array(self.coordinates(sample).file, float)
        if points.min() < -MARGIN or points.max() > 1 + MARGIN:
            raise UserError(
                f"{where} reaches out of its image; set the units (rewards.{type(self).__name__}.reference) and the "
                "layout of the references"
            )
        return points

    def from_model(self, numbers: Sequence[float], sample: Sample) -> np.ndarray:
        """Return the points (K, 2) that a model wrote as fractions of the image's width and height."""
        points = np.array(numbers, float).reshape(-1, 2)
        if self._y_first(sample):
            points = points[:, ::-1]
        return points / self._corner(sample)

    def to_model(self, points: np.ndarray, sample: Sample) -> list[int]:
        """Return the numbers that the model should write for points (K, 2) as fractions."""
        scaled = points * self._corner(sample)
        if self._y_first(sample):
            scaled = scaled[:, ::-1]
        return list(scaled.round().astype(int).ravel().tolist())

    def coordinates(self, sample: Sample) -> Coordinates:
        """Return how the model sees the row's image.

        Raises:
            UserError: the row has not one image, or no model has looked at it.
        """
        if len(sample.coordinates) != 1:
            raise UserError(
                f"{sample.source or sample.id}: rewards.{type(self).__name__}: the row has {len(sample.coordinates)} "
                "images whose size is known, not one; give one image and a vision model (to `check`, a config with "
                "both as --data), or references in fractions or thousandths and `written: thousandths`"
            )
        return sample.coordinates[0]

    def _corner(self, sample: Sample) -> np.ndarray:
        """Return the coordinates (2,) that the model writes for the bottom right corner."""
        if self.written == "thousandths":
            return np.full(2, 1000.0)
        seen = self.coordinates(sample)
        return np.array(seen.file if self.written == "pixels" else seen.corner, float)

    def _y_first(self, sample: Sample) -> bool:
        if self.y_first is not None:
            return self.y_first
        return self.written == "auto" and self.coordinates(sample).y_first


def as_places(targets: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> Places:
    """Return references and places of a text, each (K, 2) as fractions, for pages that draw them."""
    shapes = []
    for places in (targets, found):
        shapes.append(tuple(tuple(map(float, place.ravel())) for place in places))
    return Places(*shapes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers_in(item: Any) -> list[float]:
    """Return the numbers of one reference: a list, or a dict that has one under a known key; [] if there are none."""
    if isinstance(item, dict):
        item = next((item[key] for key in BOX_KEYS if item.get(key) is not None), None)
    if isinstance(item, list) and item and all(map(_is_number, item)):
        return [float(number) for number in item]
    return []
