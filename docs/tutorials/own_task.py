"""A model learns to sort digits: rows in a file, and a reward of your own. Two minutes on two CPU cores."""

import json
import random
from pathlib import Path

from lit_rlvr.cli.main import run
from lit_rlvr.rewards import Reward
from lit_rlvr.types import Completion, RewardResult, Sample


class InPlace(Reward):
    """The share of the digits that stand in their places; correct if all of them do."""

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        said, wanted = completion.text, sample.answer
        right = sum(a == b for a, b in zip(said, wanted, strict=False))
        return RewardResult(value=right / max(len(said), len(wanted)), correct=said == wanted)


def write_rows(file: Path, count: int) -> None:
    """A JSONL file with a question and its answer in each row; any names will do, the config says which is which."""
    draw = random.Random(file.name)
    with file.open("x") as rows:
        for _ in range(count):
            digits = "".join(draw.choices("0123456789", k=5))
            rows.write(json.dumps({"question": f"{digits}=", "sorted": "".join(sorted(digits))}) + "\n")


if __name__ == "__main__":
    write_rows(Path("train.jsonl"), 4000)
    write_rows(Path("held_out.jsonl"), 128)
    config = str(Path(__file__).with_suffix(".yaml"))
    assert run(["preview", "--config", config]) == 0  # lit-rlvr preview --config own_task.yaml
    assert run(["fit", "--config", config]) == 0
    assert run(["explain", "runs/own_task"]) == 0
