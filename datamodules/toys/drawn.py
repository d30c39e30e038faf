"""Drawn pictures: areas of filled cells, and lesions to count and to locate in a tomogram-like phantom."""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.datamodules.reading.choices import format_options
from lit_rlvr.datamodules.reading.split import Split
from lit_rlvr.datamodules.toys.generated import GeneratedDataModule
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.places.boxes import Boxes
from lit_rlvr.types import Prompt, Sample

SIDE = 84
"""Pixels of an image's side: 6 x 6 patches of Qwen2.5-VL's vision tower, 9 image tokens."""


class DrawnPictures(GeneratedDataModule):
    """Generated pictures; a subclass draws each one and returns its answer.

    A row's `solution` is the target completion for warm starts.

    Args:
        pictures: number of training pictures.
        held_out: number of other pictures, for validation.
        question: the user's text.

    Attributes:
        options: options of a multiple-choice question, whose answer is a letter.
    """

    options: tuple[str, ...] = ()

    def __init__(self, pictures: int, held_out: int, question: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.counts = {"train": pictures, "validation": held_out, "test": 0}
        self.question = question

    @abstractmethod
    def draw(self, rng: random.Random) -> tuple[Image.Image, str]:
        """Draw an RGB picture with `rng` as the only source of randomness; return it with its answer."""

    def rows(self, split: Split) -> Iterator[Sample]:
        """Yield the training pictures or the held-out ones, which are never the same; there is no test set."""
        held_out = set()
        for picture, _ in self._draw("validation", self.counts["validation"]):
            held_out.add(picture.tobytes())
        drawn = self._draw(split, self.counts[split])
        for i, (picture, answer) in enumerate(drawn):
            if split == "validation" or picture.tobytes() not in held_out:
                row = {"answer": answer, "solution": f"\\boxed{{{answer}}}"}
                yield Sample(f"{split}-{i}", self.question, answer, (picture,), row, options=self.options)

    def _draw(self, split: Split, count: int) -> Iterator[tuple[Image.Image, str]]:
        for i in range(count):
            yield self.draw(random.Random(derive_seed("pictures", self.seed, split, i)))


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
        wide = rng.randint(1, 3)
        high = rng.randint(1, 3)
        left = rng.randint(0, SIDE // CELL_PIXELS - wide)
        top = rng.randint(0, SIDE // CELL_PIXELS - high)
        paper = rng.randint(225, 255)
        colour = tuple(rng.randint(0, 150) for _ in range(3))
        picture = Image.new("RGB", (SIDE, SIDE), (paper, paper, paper))
        draw = ImageDraw.Draw(picture)
        right = (left + wide) * CELL_PIXELS - 1
        bottom = (top + high) * CELL_PIXELS - 1
        draw.rectangle((left * CELL_PIXELS, top * CELL_PIXELS, right, bottom), fill=colour)
        for line in (*range(0, SIDE, CELL_PIXELS), SIDE - 1):
            draw.line((line, 0, line, SIDE), fill=(190, 190, 190))
            draw.line((0, line, SIDE, line), fill=(190, 190, 190))
        return picture, str(wide * high)


class ShapeBox(DrawnPictures):
    """The box around a shape, an ellipse or a rectangle (reward `Boxes`).

    The answer has pixels of the picture; the solution is written as the model's family writes boxes.

    Args:
        pictures: number of training pictures.
        held_out: number of other pictures, for validation.
        question: the user's text.
    """

    def __init__(
        self,
        pictures: int = 2048,
        held_out: int = 128,
        question: str = "Where is the shape? Answer with [[x1, y1, x2, y2]].",
        **kwargs: Any,
    ) -> None:
        super().__init__(pictures, held_out, question, **kwargs)

    def draw(self, rng: random.Random) -> tuple[Image.Image, str]:
        paper = rng.randint(235, 255)
        picture = Image.new("RGB", (SIDE, SIDE), (paper, paper, paper))
        draw = ImageDraw.Draw(picture)
        left, top, right, bottom = random_box(rng)
        shape = rng.choice((draw.ellipse, draw.rectangle))
        shape((left, top, right - 1, bottom - 1), fill=tuple(rng.randint(0, 150) for _ in range(3)))
        return picture, str([left, top, right, bottom])

    def encode(self, sample: Sample) -> Prompt:
        prompt = super().encode(sample)
        solution = Boxes().gold_completion(prompt.sample)
        return replace(prompt, sample=replace(prompt.sample, row={**sample.row, "solution": solution}))


def random_box(rng: random.Random) -> list[int]:
    """Return [x1, y1, x2, y2] of a box on the grid of cells, with sides of 2 to 4 cells."""
    cells = SIDE // CELL_PIXELS
    sides = []
    for _ in range(2):
        sides.append(rng.randint(2, 4))
    corner = []
    for side in sides:
        corner.append(rng.randint(0, cells - side))
    opposite = []
    for start, side in zip(corner, sides, strict=True):
        opposite.append(start + side)
    return [CELL_PIXELS * place for place in (*corner, *opposite)]


RADII = (6.0, 8.0)
"""Radii of the smallest and largest lesion, in pixels."""

GAP = 4.0
"""Pixels between two lesions and between a lesion and the outer ring."""

NOISE = 3.0
"""Standard deviation of the noise, of 255 grey levels."""

QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
QUADRANT_LETTERS = {(False, False): "A", (True, False): "B", (False, True): "C", (True, True): "D"}
"""Whether a lesion is on the right and in the lower half -> the letter of its quadrant."""

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
        return phantom(rng, half_axes, [place]), QUADRANT_LETTERS[place[0] > 0, place[1] > 0]


def phantom(rng: random.Random, half_axes: tuple[float, float], lesions: list[Lesion]) -> Image.Image:
    """Draw a noisy grey ellipse with a bright ring around it and lesions inside.

    Args:
        rng: draws the noise.
        half_axes: horizontal and vertical half-axis of the ellipse, in pixels.
        lesions: the lesions to draw.
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
        x = rng.uniform(-reach, reach)
        y = rng.uniform(-reach, reach)
        radius = rng.uniform(*RADII)
        is_separate = all(math.hypot(x - a, y - b) > radius + r + GAP for a, b, r in lesions)
        if is_separate and math.hypot(x, y) + radius < reach:
            lesions.append((x, y, radius))
    return lesions
