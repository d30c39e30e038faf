"""The command line in this process, with everything it sets put back afterwards."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_config, write_config


@dataclass
class Result:
    """A command's exit status and output."""

    status: int
    out: str
    err: str


@pytest.fixture
def run_folder(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: holds `tiny.yaml`, whose run goes to `run/`."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.yaml", tiny_config(tiny_model_folder))
    return tmp_path


@pytest.fixture
def lit_rlvr(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """`lit_rlvr("fit", "--config", ...)` as from a shell."""
    from lit_rlvr.main import run

    environment, path, log = dict(os.environ), list(sys.path), logging.getLogger("lit_rlvr")
    before = (list(log.handlers), log.level, log.propagate)

    def call(*arguments: Any) -> Result:
        capsys.readouterr()
        with warnings.catch_warnings():
            status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    yield call
    log.handlers[:], log.propagate = before[0], before[2]
    log.setLevel(before[1])
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
