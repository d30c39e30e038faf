"""Whole real sets through our own readers and checker: `python benchmarks/real_sets.py FOLDER`.

FOLDER holds gsm8k/{train,test}.jsonl, math/{train,test}.parquet, math500/test.jsonl and svamp/svamp.jsonl as
published. For each: rows, rows that are refused, whether ids are unique, the share of solutions that the checker finds
right by their own reference answer, and the share by another row's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import print_result

from lit_rlvr.datamodules import TextMath
from lit_rlvr.datamodules.text_math import last_boxed
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


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name in FILES:
        data = TextMath(train=str(folder / name))
        samples = data.load("train")
        first = samples[:CHECKED]
        print_result(
            file=name, rows=len(samples), refused=len(data.bad_rows["train"]), first_answer=first[0].answer,
            unique_ids=len({s.id for s in samples}) == len(samples), right_by_its_own=right(first, first),
            right_by_the_next=right(first, first[1:] + first[:1]),
        )  # fmt: skip


if __name__ == "__main__":
    main()
