"""Write the rows of the sorting task of the study of `lr: auto`: `python research/sorting.py`, where sorting.yaml lies.

The task sorts five digits, `68285=` -> `25688`. The script writes train.jsonl and held_out.jsonl into the current
folder; the study is then started from this folder, with this file and sorting.yaml in it.
"""

import json
import random
from pathlib import Path

from lit_rlvr.rewards import Reward
from lit_rlvr.types import Completion, RewardResult, Sample


class InPlace(Reward):
    """The share of the digits that stand in their places; correct if all of them do."""

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        said, wanted = completion.text, sample.answer
        right = sum(a == b for a, b in zip(said, wanted, strict=False))
        return RewardResult(value=right / max(len(said), len(wanted)), correct=said == wanted)


def write_rows(file: Path, count: int) -> None:
    """Write a JSONL file with a question and its answer in each row."""
    draw = random.Random(file.name)
    with file.open("x") as rows:
        for _ in range(count):
            digits = "".join(draw.choices("0123456789", k=5))
            rows.write(json.dumps({"question": f"{digits}=", "sorted": "".join(sorted(digits))}) + "\n")


if __name__ == "__main__":
    write_rows(Path("train.jsonl"), 4000)
    write_rows(Path("held_out.jsonl"), 128)
