"""How well do checkers of mathematical answers judge, and how fast?

FILE holds judged answers as JSON lines {"reference", "completion", "right", "kind"}; the default is the set that our
tests use. Contestants: MathAnswer's check, Math-Verify, and TRL's accuracy_reward. For each: right answers that it
misses, wrong ones that it pays, and the median time of an answer. With --sets FOLDER (gsm8k/ and math/ as published),
the share of solutions that are right by their own reference, too.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from common import make_parser, print_result, print_table, say
from real_sets import solution

from lit_rlvr.answers import check
from lit_rlvr.datamodules import TextMath

JUDGED = Path(__file__).parent.parent / "tests/answers/answers.jsonl"
SETS = ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "math/train.parquet", "math/test.parquet")


def ours(completion: str, reference: str) -> bool:
    return check(completion, reference).correct


def math_verify(completion: str, reference: str) -> bool:
    from math_verify import parse, verify

    gold, found = (parse(text, parsing_timeout=None) for text in (f"${reference}$", completion))
    return bool(verify(gold, found, timeout_seconds=None))


def trl(completion: str, reference: str) -> bool:
    from trl.rewards import accuracy_reward

    return accuracy_reward([[{"role": "assistant", "content": completion}]], [f"${reference}$"])[0] == 1.0


CONTESTANTS: dict[str, Callable[[str, str], bool]] = {"MathAnswer": ours, "Math-Verify": math_verify, "TRL": trl}


def measure(judge: Callable[[str, str], bool], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a contestant's errors on judged answers, and its median time of one in microseconds."""
    missed, paid, seconds = 0, 0, []
    for row in rows:
        start = time.perf_counter()
        found = judge(row["completion"], row["reference"])
        seconds.append(time.perf_counter() - start)
        missed += row["right"] and not found
        paid += found and not row["right"]
    return {"missed": missed, "paid": paid, "microseconds": 1e6 * median(seconds), "slowest_ms": 1e3 * max(seconds)}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=JUDGED)
    parser.add_argument("--sets", type=Path, help="a folder with gsm8k/ and math/")
    parser.add_argument("--rows", type=int, default=500, help="solutions judged of each set")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = [json.loads(line) for line in options.file.read_text().splitlines()]
    right = sum(row["right"] for row in rows)
    found: dict[str, dict[str, Any]] = {}
    for name, judge in CONTESTANTS.items():
        say(f"{name}: {len(rows)} answers")
        found[name] = measure(judge, rows)
        for file in SETS if options.sets else ():
            say(f"{name}: {file}")
            samples = TextMath(train=str(options.sets / file)).load("train")[: options.rows]
            pairs = [{"completion": solution(s), "reference": s.answer, "right": True} for s in samples]
            found[name][file] = 1 - measure(judge, pairs)["missed"] / len(pairs)
    print(f"{right} right answers, {len(rows) - right} wrong ones")
    columns = list(next(iter(found.values())))
    print_table(["", *columns], [[name, *result.values()] for name, result in found.items()])
    print_result(right=right, wrong=len(rows) - right, **found)


if __name__ == "__main__":
    main()
