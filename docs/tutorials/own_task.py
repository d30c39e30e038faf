"""A model learns to sort digits: your own rows in a file, your own reward. Two minutes on two CPU cores."""

import json
import random
from pathlib import Path

from lit_rlvr.cli.main import run
from lit_rlvr.rewards import Reward
from lit_rlvr.types import RewardResult


class InPlace(Reward):
    """The share of the digits that stand in their places; correct if all of them do."""

    def __call__(self, completion, sample):
        said, wanted = completion.text, sample.answer
        right = sum(a == b for a, b in zip(said, wanted, strict=False))
        return RewardResult(value=right / max(len(said), len(wanted)), correct=said == wanted)


def write_rows(file: Path, count: int, seed: int) -> None:
    """Rows as any data set has them: a question, its answer, and here a solution for the warm start."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        digits = "".join(draw.choices("0123456789", k=5))
        answer = "".join(sorted(digits))
        rows.append(json.dumps({"question": f"{digits}=", "sorted": answer}))
    file.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    write_rows(Path("train.jsonl"), 4000, seed=0)
    write_rows(Path("held_out.jsonl"), 128, seed=1)
    config = Path(__file__).with_suffix(".yaml")
    assert run(["preview", "--config", str(config)]) == 0
    assert run(["fit", "--config", str(config)]) == 0
