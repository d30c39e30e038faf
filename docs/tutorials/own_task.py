"""Rows and a reward of a task of one's own: sums of three numbers in words."""

import json
import random
import re
from pathlib import Path

from lit_rlvr import Completion, Sample

NAMES = ("Ann", "Ben", "Dan", "Eve", "Ian", "Joe", "Kim", "Leo", "Mia", "Sam", "Tom", "Zoe")


def is_right(completion: Completion, sample: Sample) -> bool:
    """Return whether the completion ends with the words and numbers of the answer."""
    answer = re.findall(r"\w+", sample.answer)
    return re.findall(r"\w+", completion.text)[-len(answer) :] == answer


def make_row(draw: random.Random) -> dict[str, str]:
    """Return a question, its answer, and the way to it."""
    name, had, got, found = draw.choice(NAMES), draw.randrange(2, 20), draw.randrange(2, 20), draw.randrange(2, 10)
    total = had + got + found
    return {
        "question": f"{name} has {had} pens, gets {got} and finds {found}. How many are there now?",
        "answer": str(total),
        "worked": f"{had}+{got}={had + got}, {had + got}+{found}={total}",
    }


def make_rows() -> list[dict[str, str]]:
    """Return rows with different questions."""
    draw = random.Random(0)
    drawn = [make_row(draw) for _ in range(1400)]
    return list({row["question"]: row for row in drawn}.values())


if __name__ == "__main__":
    lines = [json.dumps(row) + "\n" for row in make_rows()]
    Path("held_out.jsonl").write_text("".join(lines[:128]))
    Path("train.jsonl").write_text("".join(lines[128:]))
