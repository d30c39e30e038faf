"""What do the warm start and GRPO each add on a task of one's own, by the files of docs/tutorials/own_task.md?

Each task has the tutorial's config and reward, and rows of its own: `fit` validates the plain model, warm-starts it on
worked answers, validates, trains by GRPO, and validates again. Each run's folder keeps its files and logs.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from datetime import date
from fractions import Fraction
from math import sqrt
from pathlib import Path
from typing import Any

from common import make_parser, print_result, print_table, run_command, say

sys.path.insert(0, str(Path(__file__).parents[1] / "docs/tutorials"))
import own_task

ROWS = 1400
"""Rows that are drawn of a task, before repeated questions are left out."""
Row = tuple[str, str, str]
"""A question, its answer, and the worked answer."""
WORDS = [
    "ant", "apple", "arm", "bag", "ball", "bank", "bed", "bell", "bird", "boat", "book", "box", "bread", "bus",
    "cake", "cap", "car", "card", "cat", "chair", "city", "clock", "coat", "corn", "cow", "cup", "desk", "dog",
    "door", "duck", "ear", "egg", "eye", "farm", "fish", "flag", "fork", "frog", "game", "gate", "gold", "hand",
    "hat", "hill", "horse", "house", "ice", "jar", "key", "king", "lake", "lamp", "leaf", "lion", "map", "milk",
    "moon", "nail", "nest", "nose", "pan", "park", "pen", "pig", "road", "rock", "rose", "sand", "ship", "shoe",
    "snow", "sock", "star", "sun", "table", "tree", "wall", "wind", "wolf",
]  # fmt: skip
ONES = [
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
]  # fmt: skip
TENS = [
    "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
]  # fmt: skip
PLACES = ("first", "second", "third", "fourth")


def pens(draw: random.Random) -> Row:
    row = own_task.make_row(draw)
    return row["question"], row["answer"], row["worked"]


def change(draw: random.Random) -> Row:
    count, price = draw.randrange(2, 10), draw.randrange(2, 10)
    cost = count * price
    question = f"{count} {draw.choice(WORDS)} cards cost {price} cents each. You pay 100 cents. What is the change?"
    return question, str(100 - cost), f"{count}*{price}={cost}, 100-{cost}={100 - cost}"


def minutes(draw: random.Random) -> Row:
    hours, more = draw.randrange(1, 13), draw.randrange(1, 60)
    total = 60 * hours + more
    worked = f"{hours}*60={60 * hours}, {60 * hours}+{more}={total}"
    return f"How many minutes are {hours} hours and {more} minutes?", str(total), worked


def coins(draw: random.Random) -> Row:
    dimes, nickels = draw.randrange(1, 10), draw.randrange(1, 10)
    name = draw.choice(own_task.NAMES)
    tens, fives = 10 * dimes, 5 * nickels
    worked = f"{dimes}*10={tens}, {nickels}*5={fives}, {tens}+{fives}={tens + fives}"
    return f"{name} has {dimes} dimes and {nickels} nickels. How many cents?", str(tens + fives), worked


def clock(draw: random.Random) -> Row:
    hour, minute = draw.randrange(1, 12), draw.randrange(60)
    if draw.random() < 0.5:
        half, later = "am", 0
    else:
        half, later = "pm", 12
    answer = f"{hour + later}:{minute:02d}"
    question = f"What is {hour}:{minute:02d} {half} on a 24-hour clock?"
    return question, answer, f"{hour}+{later}={hour + later}, {answer}"


def digits(draw: random.Random) -> Row:
    a, b, c = (draw.randrange(1, 10) for _ in range(3))
    worked = f"{a}+{b}={a + b}, {a + b}+{c}={a + b + c}"
    return f"What is the sum of the digits of {a}{b}{c}?", str(a + b + c), worked


def numeral(draw: random.Random) -> Row:
    hundreds, tens, ones = (draw.randrange(9) for _ in range(3))
    parts = [100 * (hundreds + 1), 10 * (tens + 1), ones + 1]
    said = f"{ONES[hundreds]} hundred {TENS[tens]}-{ONES[ones]}"
    return f"Write {said} in digits.", str(sum(parts)), f"{parts[0]}+{parts[1]}+{parts[2]}={sum(parts)}"


def position(draw: random.Random) -> Row:
    words, place = draw.sample(WORDS, 4), draw.randrange(4)
    counted = ", ".join(f"{k + 1} {word}" for k, word in enumerate(words[: place + 1]))
    return f"Which word is {PLACES[place]}: {', '.join(words)}?", words[place], f"{counted}: {words[place]}"


def alphabet(draw: random.Random) -> Row:
    words = draw.sample(WORDS, 4)
    first = min(words)
    letters = ", ".join(f"{word[0]} {word}" for word in words)
    return f"Which word is first in the alphabet: {', '.join(words)}?", first, f"{letters}: {first}"


def backwards(draw: random.Random) -> Row:
    words = draw.sample(WORDS, 3)
    counted = ", ".join(f"{3 - k} {word}" for k, word in enumerate(reversed(words)))
    answer = " ".join(reversed(words))
    return f"Write these words in reverse order: {' '.join(words)}", answer, f"{counted}: {answer}"


def largest(draw: random.Random) -> Row:
    numbers = draw.sample(range(100, 1000), 3)
    said = [f"{number / 100:.{draw.choice((1, 2))}f}" for number in numbers]
    answer = max(said, key=Fraction)
    padded = ", ".join(f"{float(number):.2f}" for number in said)
    return f"Which number is the largest: {', '.join(said)}?", answer, f"{padded}: {answer}"


def sorting(draw: random.Random) -> Row:
    numbers = draw.sample(range(1, 100), 4)
    low, high = sorted(numbers[:2]), sorted(numbers[2:])
    answer = " ".join(map(str, sorted(numbers)))
    said = " ".join(map(str, numbers))
    return f"Sort these numbers: {said}", answer, f"{low[0]} {low[1]}, {high[0]} {high[1]}: {answer}"


def letter(draw: random.Random) -> Row:
    word = draw.choice([word for word in WORDS if len(word) > 3])
    other, place = draw.choice(WORDS), draw.randrange(4)
    spelt = ", ".join(f"{k + 1} {word[k]}" for k in range(place + 1))
    return f"A {other} and a {word}: which letter of {word} is {PLACES[place]}?", word[place], f"{spelt}: {word[place]}"


TASKS: dict[str, Callable[[random.Random], Row]] = {
    task.__name__: task
    for task in (
        pens, change, minutes, coins, clock, digits, numeral, position, alphabet, backwards, largest, sorting, letter,
    )
}  # fmt: skip
COLUMNS = ["task", "seed", "before", "after warm start", "after GRPO", "gain of GRPO", "2 s.e.", "guess", "s", "CPU s"]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=[*TASKS], help="tasks to try")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of the runs; the rows stay the same")
    parser.add_argument("--held-out", type=int, default=128, help="validation questions")
    parser.add_argument("--options", nargs="*", default=[], help="further options of `fit`, without their dashes")
    parser.add_argument("--folder", type=Path, required=True, help="new folder for the tasks' files and logs")
    options = parser.parse_args()
    extra = [f"--{option}" for option in options.options]
    rows = [
        measure(name, seed, options.held_out, options.folder / f"{name}_{seed}", extra)
        for name in options.only
        for seed in options.seeds
    ]
    print_table(COLUMNS, rows)
    print_result(rows=rows, date=date.today().isoformat())


def make_rows(name: str) -> list[dict[str, str]]:
    """Return the rows of a task, without repeated questions."""
    draw = random.Random(0)
    drawn = {row[0]: row for row in (TASKS[name](draw) for _ in range(ROWS))}
    return [{"question": question, "answer": answer, "worked": worked} for question, answer, worked in drawn.values()]


def measure(name: str, seed: int, held_out: int, folder: Path, extra: list[str]) -> list[Any]:
    """Return a row of COLUMNS: the accuracies, two standard errors of the last one, and what training took."""
    folder.mkdir(parents=True)
    for suffix in (".py", ".yaml"):
        shutil.copy(Path(own_task.__file__).with_suffix(suffix), folder)
    rows = make_rows(name)
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "held_out.jsonl").write_text("".join(lines[:held_out]))
    (folder / "train.jsonl").write_text("".join(lines[held_out:]))
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (folder / "fit.log").open("w") as log:
        arguments = ["--config", "own_task.yaml", "--seed_everything", str(seed), *extra]
        found = run_command("fit", *arguments, cwd=folder, stderr=log)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    before, after = found["accuracy_before"], found["accuracy_after"]
    error = 2 * sqrt(after * (1 - after) / held_out)
    guess = max(Counter(row["answer"] for row in rows[:held_out]).values()) / held_out
    plain = found.get("accuracy_before_warm_start")
    row = [name, seed, plain, before, after, after - before, error, guess, found["train_seconds"], cpu]
    say("  ".join(map(str, row)))
    return row


if __name__ == "__main__":
    main()
