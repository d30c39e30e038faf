"""Do tasks of one's own learn at the first try, by the commands of docs/tutorials/first_task.md alone?

Three tasks that no example of the project trains, each with the tutorial's config and reward: `validate` for the plain
model, `tune`, and `fit` with what it writes. Each task's folder keeps its files and logs.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from common import make_parser, print_result, print_table, run_command, say

TUTORIAL = Path(__file__).parents[1] / "docs/tutorials"
HELD_OUT = 128


def clock(draw: random.Random) -> tuple[str, str]:
    hour, minute = draw.randrange(24), draw.randrange(60)
    said = f"{hour % 12 or 12}:{minute:02d} {'am' if hour < 12 else 'pm'}"
    return f"What is {said} on a 24-hour clock?", f"{hour:02d}:{minute:02d}"


def largest(draw: random.Random) -> tuple[str, str]:
    numbers = draw.sample(range(10, 1000), 4)
    return f"Which of these numbers is the largest: {', '.join(map(str, numbers))}?", str(max(numbers))


def minutes(draw: random.Random) -> tuple[str, str]:
    hours, more = draw.randrange(1, 13), draw.randrange(1, 60)
    return f"How many minutes are {hours} hours and {more} minutes?", str(60 * hours + more)


TASKS: dict[str, Callable[[random.Random], tuple[str, str]]] = {"clock": clock, "largest": largest, "minutes": minutes}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=[*TASKS], help="tasks to try")
    parser.add_argument("--folder", type=Path, required=True, help="new folder for the tasks' files and logs")
    options = parser.parse_args()
    rows = [measure(name, options.folder / name) for name in options.only]
    print_table(["task", "plain model", "after tune", "after fit", "tune s", "training s"], rows)
    print_result(rows=rows, date=date.today().isoformat())


def measure(name: str, folder: Path) -> list[Any]:
    """Return a row: task, accuracy of the plain model, after `tune`'s warm start and after `fit`, seconds of each."""
    folder.mkdir(parents=True)
    for suffix in ("py", "yaml"):
        shutil.copy(TUTORIAL / f"first_task.{suffix}", folder)
    draw = random.Random(0)
    questions = dict(TASKS[name](draw) for _ in range(1400))
    lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in questions.items()]
    (folder / "held_out.jsonl").write_text("".join(lines[:HELD_OUT]))
    (folder / "train.jsonl").write_text("".join(lines[HELD_OUT:]))
    plain = command(folder, "validate", "--trainer.default_root_dir", "runs/plain")["val/accuracy"]
    began = time.perf_counter()
    command(folder, "tune", "--minutes", "3", "--out", "tuned.yaml")
    tuning = time.perf_counter() - began
    found = command(folder, "fit", "--config", "tuned.yaml")
    row = [name, plain, found["accuracy_before"], found["accuracy_after"], tuning, found["train_seconds"]]
    say("  ".join(map(str, row)))
    return row


def command(folder: Path, name: str, *arguments: str) -> dict[str, Any]:
    """Run a command on the folder's config, with its log in a file; return the document that it prints."""
    with (folder / f"{name}.log").open("w") as log:
        return run_command(name, "--config", "first_task.yaml", *arguments, cwd=folder, stderr=log)


if __name__ == "__main__":
    main()
