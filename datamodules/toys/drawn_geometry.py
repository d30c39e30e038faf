"""Drawn geometry: areas of filled cells, and lengths and angles of triangles."""

from __future__ import annotations

import math
import random
from typing import Any, Literal

from PIL import Image, ImageDraw, ImageFont

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
        for x in range(left, left + wide):
            for y in range(top, top + high):
                draw.rectangle(
                    (x * CELL_PIXELS, y * CELL_PIXELS, (x + 1) * CELL_PIXELS - 1, (y + 1) * CELL_PIXELS - 1),
                    fill=colour,
                )
        for line in (*range(0, SIDE, CELL_PIXELS), SIDE - 1):
            draw.line((line, 0, line, SIDE), fill=(190, 190, 190))
            draw.line((0, line, SIDE, line), fill=(190, 190, 190))
        return picture, str(wide * high)


TRIANGLE_SIDE = 224
"""Pixels of an image's side: 8 x 8 image tokens of Qwen2.5-VL."""

TRIPLES = ((3, 4, 5), (5, 12, 13), (6, 8, 10), (8, 15, 17), (9, 12, 15), (12, 16, 20))
"""Sides of right triangles."""

Point = tuple[float, float]

QUESTIONS = {
    "angle": "What is the angle marked with a question mark, in degrees? Answer in \\boxed{}.",
    "length": "The triangle has a right angle. How long is the side marked with a question mark? Answer in \\boxed{}.",
}


class TriangleProblem(DrawnPictures):
    """The third angle of a triangle, or the third side of a right one; the other two are written in the picture.

    Position, rotation, mirroring and size vary. The numbers appear only in the picture.

    Args:
        ask: what the question asks for.
        pictures: number of training pictures.
        held_out: number of other pictures, for validation.
        question: the user's text; None = one that fits `ask`.
    """

    def __init__(
        self,
        ask: Literal["angle", "length"] = "angle",
        pictures: int = 2048,
        held_out: int = 128,
        question: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(pictures, held_out, QUESTIONS[ask] if question is None else question, **kwargs)
        self.ask = ask

    def draw(self, rng: random.Random) -> tuple[Image.Image, str]:
        if self.ask == "angle":
            first, second = rng.randint(35, 75), rng.randint(35, 75)
            values = [first, second, 180 - first - second]
            corners = place_triangle(rng, triangle_corners(first, second))
            at = [towards(corner, centre(corners), 0.4) for corner in corners]
            unit = "\N{DEGREE SIGN}"
        else:
            values = list(rng.choice(TRIPLES))
            corners = place_triangle(rng, [(0, 0), (values[0], 0), (0, values[1])])
            sides = ((0, 1), (0, 2), (1, 2))  # as the values
            at = [towards(middle(corners[a], corners[b]), centre(corners), -0.3) for a, b in sides]
            unit = ""
        hidden = rng.randrange(3)
        labels = ["?" if i == hidden else f"{value}{unit}" for i, value in enumerate(values)]
        return draw_triangle(corners, list(zip(at, labels, strict=True))), str(values[hidden])


def triangle_corners(first: float, second: float) -> list[Point]:
    """Return the corners of a triangle with a base of length 1 and these two angles at the base, in degrees."""
    a, b = math.radians(first), math.radians(second)
    length = math.sin(b) / math.sin(a + b)
    return [(0.0, 0.0), (1.0, 0.0), (length * math.cos(a), length * math.sin(a))]


def place_triangle(rng: random.Random, corners: list[Point]) -> list[Point]:
    """Rotate, perhaps mirror, and scale the corners so that labels fit around them."""
    angle, mirror = rng.uniform(0, 2 * math.pi), rng.choice((-1, 1))
    turned = [
        (x * math.cos(angle) - mirror * y * math.sin(angle), x * math.sin(angle) + mirror * y * math.cos(angle))
        for x, y in corners
    ]
    (left, right), (top, bottom) = ((min(v), max(v)) for v in zip(*turned, strict=True))
    scale = TRIANGLE_SIDE * rng.uniform(0.55, 0.65) / max(right - left, bottom - top)
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    return [(TRIANGLE_SIDE / 2 + scale * (x - middle_x), TRIANGLE_SIDE / 2 + scale * (y - middle_y)) for x, y in turned]


def centre(corners: list[Point]) -> Point:
    return sum(x for x, _ in corners) / 3, sum(y for _, y in corners) / 3


def middle(a: Point, b: Point) -> Point:
    return (a[0] + b[0]) / 2, (a[1] + b[1]) / 2


def towards(start: Point, goal: Point, share: float) -> Point:
    """Return the point at `share` of the way from `start` to `goal`; a negative share leads away from it."""
    return start[0] + share * (goal[0] - start[0]), start[1] + share * (goal[1] - start[1])


def draw_triangle(corners: list[Point], labels: list[tuple[Point, str]]) -> Image.Image:
    """Draw black lines and labels on white."""
    image = Image.new("RGB", (TRIANGLE_SIDE, TRIANGLE_SIDE), "white")
    draw = ImageDraw.Draw(image)
    draw.line([*corners, corners[0]], fill="black", width=2, joint="curve")
    font = ImageFont.load_default(size=16)
    for place, text in labels:
        draw.text(place, text, fill="black", font=font, anchor="mm")
    return image
