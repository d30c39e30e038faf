"""Whole real sets through our own readers and checker.

FOLDER holds gsm8k/{train,test}.jsonl, math/{train,test}.parquet, math500/test.jsonl and svamp/svamp.jsonl as
published. For each: rows, rows that are refused, whether ids are unique, the share of solutions that the checker finds
right by their own reference answer, and the share by another row's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from common import make_parser, print_result, print_table

from lit_rlvr.answers.find import last_boxed
from lit_rlvr.datamodules import TextMath
from lit_rlvr.rewards import MathAnswer
from lit_rlvr.types import Completion, Sample

FILES = ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "math/train.parquet", "math/test.parquet", "math500/test.jsonl",
         "svamp/svamp.jsonl")  # fmt: skip
CHECKED = 200
"""Number of solutions of a set that the checker judges."""


def solution(sample: Sample) -> str:
    """Return a row's solution; for sets without solutions, the answer in a box."""
    row = sample.row
    nested = (row.get("reward_model") or {}).get("ground_truth")
    if isinstance(nested, dict):
        return str(nested["solution"])
    text = row.get("solution") or row.get("answer")
    return text if isinstance(text, str) and ("####" in text or last_boxed(text)) else f"\\boxed{{{sample.answer}}}"


def right(samples: list[Sample], answers: list[Sample]) -> float:
    """Return the share of some rows' solutions that are right by other rows' answers."""
    pairs = [(Completion(solution(s), (1,), "stop"), other) for s, other in zip(samples, answers, strict=True)]
    return sum(bool(result.correct) for result in MathAnswer().score(pairs)) / len(pairs)


def check(path: Path) -> dict[str, Any]:
    """Return what our reader and our checker make of a set."""
    data = TextMath(train=str(path))
    samples = data.load("train")
    first = samples[:CHECKED]
    return {
        "rows": len(samples), "refused": len(data.bad_rows["train"]), "first_answer": first[0].answer,
        "unique_ids": len({s.id for s in samples}) == len(samples), "right_by_its_own": right(first, first),
        "right_by_the_next": right(first, first[1:] + first[:1]),
    }  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    sets = [{"file": name, **check(folder / name)} for name in FILES]
    print_table(list(sets[0]), [list(each.values()) for each in sets])
    print_result(sets=sets)


if __name__ == "__main__":
    main()
