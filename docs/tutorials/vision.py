"""Rows with pictures, and a reward, of a task of one's own: count the filled cells of a grid."""

import json
import random
import re
from pathlib import Path

from PIL import Image, ImageDraw

from lit_rlvr import Completion, Reward, Sample

CELL, SIDE = 14, 84  # pixels


class Consistent(Reward):
    """1 when width times height is the answer in the box, be it right or wrong."""

    def __call__(self, completion: Completion, sample: Sample) -> float:
        found = re.fullmatch(r"(\d)x(\d)=\\boxed\{(\d)\}", completion.text)
        return float(found is not None and int(found[1]) * int(found[2]) == int(found[3]))


def draw(wide: int, high: int, rng: random.Random) -> Image.Image:
    """Draw a rectangle of wide x high cells somewhere on squared paper."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(picture)
    left, top = CELL * rng.randint(0, 6 - wide), CELL * rng.randint(0, 6 - high)
    colour = tuple(rng.randint(0, 120) for _ in range(3))
    pen.rectangle((left, top, left + CELL * wide, top + CELL * high), fill=colour)
    for line in range(0, SIDE + 1, CELL):
        pen.line((line, 0, line, SIDE), fill="silver")
        pen.line((0, line, SIDE, line), fill="silver")
    return picture


def write_rows(name: str, count: int) -> None:
    """Write `name.jsonl`, and its pictures in `name/`."""
    rng = random.Random(name)
    Path(name).mkdir()
    with Path(f"{name}.jsonl").open("x") as rows:
        for i in range(count):
            wide, high = rng.randint(1, 3), rng.randint(1, 3)
            draw(wide, high, rng).save(f"{name}/{i}.png")
            row = {
                "question": "<image>How many cells are filled?",
                "image": f"{name}/{i}.png",
                "answer": wide * high,
                "worked": f"{wide}x{high}=\\boxed{{{wide * high}}}",
            }
            rows.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    for name, count in (("train", 1024), ("held_out", 128), ("test", 128)):
        write_rows(name, count)
