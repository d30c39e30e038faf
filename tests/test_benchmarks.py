"""Every benchmark starts, and the one that compares whole steps with TRL runs at a tiny size."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import child_environment

FOLDERS = [Path(__file__).parent.parent / name for name in ("benchmarks", "research")]

Benchmark = Callable[..., dict[str, Any]]


@pytest.fixture
def benchmark(run_folder: Path) -> Benchmark:
    """Runs a benchmark in a folder that holds `tiny.yaml`; returns the numbers of its last line."""

    def call(name: str, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, *(path for folder in FOLDERS if (path := folder / f"{name}.py").is_file()), *arguments],
            env=child_environment(),
            cwd=run_folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert found["benchmark"] == name and found["machine"]["cores"] > 0
        return found

    return call


def scripts() -> list[Path]:
    """The scripts of both folders that have a command line."""
    return [path for folder in FOLDERS for path in folder.glob("*.py") if "make_parser(__doc__" in path.read_text()]


def test_every_benchmark_has_a_row() -> None:
    tables = "".join((folder / "README.md").read_text() for folder in FOLDERS)
    rows = set(re.findall(r"^[|-] `(\w+)\.py", tables, re.M))
    assert rows == {path.stem for path in scripts()} | {"findings", "sorting"}


@pytest.mark.slow
def test_every_benchmark_starts(capfd: pytest.CaptureFixture[str]) -> None:
    """Each script prints its help, in a fork of this process, which has imported nearly all that it imports."""
    for path in scripts():
        if (process := os.fork()) == 0:
            sys.argv, sys.path[:0] = [str(path), "--help"], [str(path.parent)]
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as end:
                os._exit(int(end.code or 0))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, path.name


@pytest.mark.exhaustive
def test_replay_trl(benchmark: Benchmark) -> None:
    found = benchmark("replay_trl", "--rollouts", "1", "--prompts", "2", "--group-size", "4")
    assert len(found["results"]) == 4
    for case, differences in found["results"].items():
        assert differences["gradient"] < 1e-4 and differences["of_change"] < 1e-3, (case, differences)
        assert differences["change"] > 1e-5, (case, differences)
