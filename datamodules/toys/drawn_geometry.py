"""Drawn geometry: the smoke task of areas of filled cells."""

from __future__ import annotations

import random
from typing import Any

from PIL import Image, ImageDraw

from lit_rlvr.datamodules.toys.generated import SIDE, DrawnPictures

CELL_PIXELS = 14
"""Pixels of a cell's side, one patch of Qwen2.5-VL's vision tower."""


class CellArea(DrawnPictures):
    """The area of a filled rectangle on a grid of 6 x 6 cells, with sides of 1 to 3 cells.

    The rectangle's position, its colour and the background shade vary.

    Args:
        pictures: number of training pictures.
        held_out: number of other pictures, for validation.
        question: the user's text.
    """

    def __init__(
        self,
        pictures: int = 2048,
        held_out: int = 128,
        question: str = "How many cells are filled? Answer in \\boxed{}.",
        **kwargs: Any,
    ) -> None:
        super().__init__(pictures, held_out, question, **kwargs)

    def draw(self, rng: random.Random) -> tuple[Image.Image, str]:
        wide, high = rng.randint(1, 3), rng.randint(1, 3)
        left, top = rng.randint(0, SIDE // CELL_PIXELS - wide), rng.randint(0, SIDE // CELL_PIXELS - high)
        paper = rng.randint(225, 255)
        colour = tuple(rng.randint(0, 150) for _ in range(3))
        picture = Image.new("RGB", (SIDE, SIDE), (paper, paper, paper))
        draw = ImageDraw.Draw(picture)
        right, bottom = (left + wide) * CELL_PIXELS - 1, (top + high) * CELL_PIXELS - 1
        draw.rectangle((left * CELL_PIXELS, top * CELL_PIXELS, right, bottom), fill=colour)
        for line in (*range(0, SIDE, CELL_PIXELS), SIDE - 1):
            draw.line((line, 0, line, SIDE), fill=(190, 190, 190))
            draw.line((0, line, SIDE, line), fill=(190, 190, 190))
        return picture, str(wide * high)
