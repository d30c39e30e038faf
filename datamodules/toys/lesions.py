"""Lesions to count and to locate in a tomogram-like phantom: the smoke tasks of medical images."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
from PIL import Image

from lit_rlvr.datamodules.reading.options import format_options
from lit_rlvr.datamodules.toys.generated import SIDE, DrawnPictures
from lit_rlvr.errors import UserError

RADII = (6.0, 8.0)
"""Radii of the smallest and largest lesion, in pixels."""

GAP = 4.0
"""Pixels between two lesions and between a lesion and the outer ring."""


NOISE = 3.0
"""Standard deviation of the noise, of 255 grey levels."""

QUADRANTS = ("top left", "top right", "bottom left", "bottom right")

Lesion = tuple[float, float, float]
"""(x, y, radius) in pixels; x and y start at the centre of the slice."""


class LesionCount(DrawnPictures):
    """The number of bright lesions, 0 to `most`, in a noisy grey slice with a bright outer ring.

    Args:
        pictures: number of training pictures.
        held_out: number of other pictures, for validation.
        question: the user's text.
        most: the largest number of lesions.
    """

    def __init__(
        self,
        pictures: int = 2048,
        held_out: int = 128,
        question: str = "How many bright lesions are there? Answer in \\boxed{}.",
        most: int = 4,
        **kwargs: Any,
    ) -> None:
        if not 1 <= most <= 4:
            raise UserError(f"most={most}: the slice has room for 1 to 4 lesions")
        super().__init__(pictures, held_out, question, **kwargs)
        self.most = most

    def draw(self, rng: random.Random) -> tuple[Image.Image, str]:
        half_axes = rng.uniform(33, 37), rng.uniform(35, 39)
        count = rng.randint(0, self.most)
        return phantom(rng, half_axes, scatter(rng, count, min(half_axes) - GAP)), str(count)


class LesionPlace(DrawnPictures):
    """The quadrant of the one bright lesion in a noisy grey slice, as a multiple-choice question (reward `Choice`).

    Args:
        pictures: number of training pictures.
        held_out: number of other pictures, for validation.
        question: the user's text; the four quadrants follow it as options A to D.
    """

    options = QUADRANTS

    def __init__(
        self,
        pictures: int = 2048,
        held_out: int = 128,
        question: str = "Where is the bright lesion? Answer with its letter in \\boxed{}.",
        **kwargs: Any,
    ) -> None:
        super().__init__(pictures, held_out, f"{question}\n{format_options(QUADRANTS)}", **kwargs)

    def draw(self, rng: random.Random) -> tuple[Image.Image, str]:
        half_axes = rng.uniform(33, 37), rng.uniform(35, 39)
        (place,) = scatter(rng, 1, min(half_axes) - GAP)
        while min(abs(place[0]), abs(place[1])) <= place[2]:  # on the line between two quadrants
            (place,) = scatter(rng, 1, min(half_axes) - GAP)
        return phantom(rng, half_axes, [place]), "ABCD"[(place[0] > 0) + 2 * (place[1] > 0)]


def phantom(rng: random.Random, half_axes: tuple[float, float], lesions: list[Lesion]) -> Image.Image:
    """Draw a noisy grey ellipse with a bright ring around it and lesions inside.

    Args:
        half_axes: horizontal and vertical half-axis of the ellipse, in pixels.
    """
    noise = np.random.default_rng(rng.getrandbits(64))
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2  # (H, W), pixels from the centre
    out = np.hypot(x / half_axes[0], y / half_axes[1])  # (H, W), 1 on the ring
    grey = np.where(out < 1.06, rng.uniform(60, 90), 5.0) + np.where(abs(out - 1) < 0.06, 110, 0)
    for cx, cy, radius in lesions:
        grey += 150 * np.clip(radius + 0.5 - np.hypot(x - cx, y - cy), 0, 1)
    grey += noise.normal(0, NOISE, grey.shape)
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")


def scatter(rng: random.Random, count: int, reach: float) -> list[Lesion]:
    """Draw lesions that do not touch, within `reach` pixels of the centre."""
    lesions: list[Lesion] = []
    while len(lesions) < count:
        x, y, radius = rng.uniform(-reach, reach), rng.uniform(-reach, reach), rng.uniform(*RADII)
        is_separate = all(math.hypot(x - a, y - b) > radius + r + GAP for a, b, r in lesions)
        if is_separate and math.hypot(x, y) + radius < reach:
            lesions.append((x, y, radius))
    return lesions
