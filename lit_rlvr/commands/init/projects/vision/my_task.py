"""A task with pictures: a data set that draws them, and a reward. `config.yaml` names both by their dotted path."""

from __future__ import annotations

import random
from collections.abc import Iterator

from PIL import Image, ImageDraw

from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.base import Split
from lit_rlvr.types import Completion, Sample

COLOURS = ("black", "blue", "green", "red")


class Discs(PromptDataModule):
    """A disc somewhere in a picture; its colour is the answer."""

    def rows(self, split: Split) -> Iterator[Sample]:
        """Yield pictures with their colours.

        `<image>` marks the picture's place. `images` may also hold paths, bytes or base64. `solution` in `row` is the
        target of the warm start.
        """
        seeds = {"train": range(128, 2128), "validation": range(128), "test": range(0)}[split]
        for seed in seeds:
            picture, colour = draw_disc(random.Random(seed))
            prompt = "<image>colour?"
            yield Sample(f"disc {seed}", prompt, colour, images=(picture,), row={"solution": colour})


def draw_disc(rng: random.Random) -> tuple[Image.Image, str]:
    """Draw a picture of 84 x 84 pixels, 9 image tokens; return it with the colour of its disc."""
    colour = rng.choice(COLOURS)
    size, paper = rng.randint(20, 50), rng.randint(200, 255)
    left, top = rng.randint(0, 84 - size), rng.randint(0, 84 - size)
    picture = Image.new("RGB", (84, 84), (paper, paper, paper))
    ImageDraw.Draw(picture).ellipse((left, top, left + size, top + size), fill=colour)
    return picture, colour


def exact(completion: Completion, sample: Sample) -> bool:
    """Return True for exactly the answer. A plain function is a reward, and a bool also reports `correct`."""
    return completion.text.strip().lower() == sample.answer
