"""Tiny runs of benchmarks that no other test runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import child_environment

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RUNS = {
    "attention": ("--device cpu --groups 2 --group-size 2 --prompt 8 --mean 8 --rounds 1", "error"),
    "real_sets": ("sets", "right_by_its_own"),
}
"""Benchmark -> its smallest arguments, and a key of its last line."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_tiny_run(name: str, tmp_path: Path) -> None:
    arguments, key = RUNS[name]
    if name == "real_sets":
        write_sets(tmp_path / "sets")
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", *arguments.split()],
        env=child_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result[key], result
    if name == "attention":
        assert result["error"] < 1e-5
    elif name == "real_sets":
        assert done.stdout.count('"right_by_its_own": 1.0, "right_by_the_next": 0.0') == 6


def write_sets(folder: Path) -> None:
    """Write three rows for each of the published files."""
    import pandas

    for name in ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "math/train.parquet", "math/test.parquet",
                 "math500/test.jsonl", "svamp/svamp.jsonl"):  # fmt: skip
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = [
            {"question": f"What is {k} + 1?", "answer": f"One more.\n#### {k + 1}"} if "gsm8k" in name
            else {"problem": f"What is {k} + 1?", "solution": f"\\boxed{{{k + 1}}}", "answer": str(k + 1)}
            for k in range(3)
        ]  # fmt: skip
        if path.suffix == ".parquet":
            pandas.DataFrame(rows).to_parquet(path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
