"""Rows and a reward of the first task: times on a 24-hour clock."""

import json
import random
from pathlib import Path

from lit_rlvr.types import Completion, Sample


def is_right(completion: Completion, sample: Sample) -> bool:
    """Return whether the completion ends with the answer."""
    return completion.text.rstrip(" .\n").split()[-1:] == [sample.answer]


def make_rows() -> list[dict[str, str]]:
    """Return a question and its answer for each minute of a day, in random order."""
    rows = []
    for hour in range(24):
        for minute in range(60):
            said = f"{hour % 12 or 12}:{minute:02d} {'am' if hour < 12 else 'pm'}"
            rows.append({"question": f"What is {said} on a 24-hour clock?", "answer": f"{hour:02d}:{minute:02d}"})
    return random.Random(0).sample(rows, len(rows))


if __name__ == "__main__":
    lines = [json.dumps(row) + "\n" for row in make_rows()]
    Path("held_out.jsonl").write_text("".join(lines[:128]))
    Path("train.jsonl").write_text("".join(lines[128:]))
