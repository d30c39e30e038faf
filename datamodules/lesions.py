"""Counting lesions in a tomogram-like phantom: the smoke task of medical images."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
from PIL import Image

from datamodules.drawn import SIDE, DrawnPictures
from lit_rlvr.errors import UserError

RADII = (5.0, 7.0)
"""Smallest and largest lesion, pixels."""

GAP = 4.0
"""Pixels between two lesions and between a lesion and the outer ring."""


class LesionCount(DrawnPictures):
    """The number of bright lesions, 0 to `most`, in a noisy grey slice with a bright outer ring.

    Args:
        pictures: how many there are to train on.
        held_out: how many others are the validation set.
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
        if not 1 <= most <= 6:
            raise UserError(f"most={most}: 1 to 6 lesions have room in the slice")
        super().__init__(pictures, held_out, question, **kwargs)
        self.most = most

    def draw(self, rng: random.Random) -> tuple[Image.Image, int]:
        count = rng.randint(0, self.most)
        noise = np.random.default_rng(rng.getrandbits(64))
        y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2  # (H, W), pixels from the centre
        wide, high = rng.uniform(31, 37), rng.uniform(33, 39)  # half-axes of the slice
        out = np.hypot(x / wide, y / high)  # (H, W), 1 on the ring
        slice_ = np.where(out < 1.06, rng.uniform(60, 90), 5.0) + np.where(abs(out - 1) < 0.06, 110, 0)
        for cx, cy, radius in self._places(rng, count, min(wide, high) - GAP):
            slice_ += 150 * np.clip(radius + 0.5 - np.hypot(x - cx, y - cy), 0, 1)
        slice_ += noise.normal(0, 4, slice_.shape)
        return Image.fromarray(slice_.clip(0, 255).astype(np.uint8)).convert("RGB"), count

    @staticmethod
    def _places(rng: random.Random, count: int, reach: float) -> list[tuple[float, float, float]]:
        """(x, y, radius) of lesions that do not touch, within `reach` pixels of the centre."""
        places: list[tuple[float, float, float]] = []
        while len(places) < count:
            x, y, radius = rng.uniform(-reach, reach), rng.uniform(-reach, reach), rng.uniform(*RADII)
            apart = all(math.hypot(x - a, y - b) > radius + r + GAP for a, b, r in places)
            if apart and math.hypot(x, y) + radius < reach:
                places.append((x, y, radius))
        return places
