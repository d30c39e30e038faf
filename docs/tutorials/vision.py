"""A vision-language reasoner, from pictures in a folder to an evaluation. Three minutes on two CPU cores."""

import csv
import json
import random
import re
from pathlib import Path

from matplotlib import pyplot
from PIL import Image, ImageDraw

from lit_rlvr.cli.main import run
from lit_rlvr.rewards import Reward
from lit_rlvr.types import Completion, Sample

HERE = Path(__file__).parent
CELL, SIDE = 14, 84  # pixels


class Consistent(Reward):
    """1 when width times height is the answer in the box, be it right or wrong."""

    def __call__(self, completion: Completion, sample: Sample) -> float:
        found = re.fullmatch(r"(\d)x(\d)=\\boxed\{(\d)\}", completion.text)
        return float(found is not None and int(found[1]) * int(found[2]) == int(found[3]))


def draw(wide: int, high: int, rng: random.Random) -> Image.Image:
    """A rectangle of wide x high cells somewhere on squared paper."""
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
    """`name.jsonl`, and its pictures in `name/`."""
    rng = random.Random(name)
    Path(name).mkdir()
    with Path(f"{name}.jsonl").open("x") as rows:
        for i in range(count):
            wide, high = rng.randint(1, 3), rng.randint(1, 3)
            draw(wide, high, rng).save(f"{name}/{i}.png")
            row = {"question": "<image>How many cells are filled?", "image": f"{name}/{i}.png", "area": wide * high}
            thought = f"{wide}x{high}=\\boxed{{{wide * high}}}"  # for the warm start
            rows.write(json.dumps(row | {"solution": thought}) + "\n")


def picture(run: Path, evaluation: Path) -> None:
    """Left: pictures of the test set with the model's greedy answers. Right: accuracy in validation and on the test."""
    figure, axes = pyplot.subplot_mosaic("abcx;defx", width_ratios=(1, 1, 1, 3), figsize=(10, 4), layout="constrained")
    said = [json.loads(line) for line in (evaluation / "completions.jsonl").read_text().splitlines()]
    greedy = [one for one in said if one["part"] == "vision_test/greedy"]
    for name, one in zip("abcdef", greedy, strict=False):
        row = int(one["id"].rpartition(":")[2]) - 1  # `vision_test:1` is the first row
        axes[name].imshow(Image.open(f"test/{row}.png"))
        axes[name].set_title(one["completion"].replace("\\boxed", ""), color="green" if one["correct"] else "red")
        axes[name].set_axis_off()
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/accuracy"]]
    axes["x"].plot([int(row["step"]) for row in rows], [float(row["val/accuracy"]) for row in rows], marker="o")
    axes["x"].set(xlabel="optimizer step", ylabel="accuracy", ylim=(0, 1))
    axes["x"].grid(alpha=0.3)
    figure.savefig("vision.png", dpi=100)


if __name__ == "__main__":
    for name, count in (("train", 1024), ("held_out", 128), ("test", 128)):
        write_rows(name, count)
    config = str(HERE / "vision.yaml")
    suites = [str(HERE / "vision_test.yaml"), str(HERE / "vision_shuffled.yaml")]
    evaluate = ["evaluate", "--model", "runs/vision", "--suite", ",".join(suites), "-n", "8", "--engine", "hf"]
    assert run(["preview", "--config", config]) == 0
    assert run(["fit", "--config", config]) == 0
    assert run([*evaluate, "--temperature", "1.0", "--top_p", "1.0", "--out", "runs/vision_test"]) == 0
    picture(Path("runs/vision"), Path("runs/vision_test"))
