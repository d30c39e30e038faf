"""A task with pictures: a data set that draws them, and a reward. `config.yaml` names both by their class_path."""

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
        """`<image>` marks the picture's place. `images` may also hold paths, bytes or base64.

        `solution` in `row` is what the warm start teaches.
        """
        seeds = {"train": range(128, 2128), "validation": range(128), "test": range(0)}[split]
        for seed in seeds:
            picture, colour = drawn(random.Random(seed))
            prompt = "<image>colour?"
            yield Sample(f"disc {seed}", prompt, colour, images=(picture,), row={"solution": colour})


def drawn(rng: random.Random) -> tuple[Image.Image, str]:
    """A picture of 84 x 84 pixels, 9 image tokens, and the colour of its disc."""
    colour = rng.choice(COLOURS)
    size, paper = rng.randint(20, 50), rng.randint(200, 255)
    left, top = rng.randint(0, 84 - size), rng.randint(0, 84 - size)
    picture = Image.new("RGB", (84, 84), (paper, paper, paper))
    ImageDraw.Draw(picture).ellipse((left, top, left + size, top + size), fill=colour)
    return picture, colour


def says(completion: Completion, sample: Sample) -> bool:
    """The reward: 1 for the answer itself. A plain function of this form is a reward; bool also reports `correct`."""
    return completion.text.strip().lower() == sample.answer
