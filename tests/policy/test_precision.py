"""`trainer.precision: auto` is what the machine is fast at, and the run folder says which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import fit


@pytest.mark.parametrize(("fast", "wanted"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_takes_what_the_device_computes_fast(
    run_folder: Path, lit_rlvr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fast: bool, wanted: str
) -> None:
    monkeypatch.setattr("lit_rlvr.policy.precision.fast_bf16", lambda device: fast and device == "cpu")
    fit(lit_rlvr, "--trainer.precision", "auto", "--trainer.max_steps", 1)
    saved = yaml.safe_load((run_folder / "run" / "config.yaml").read_text())
    assert saved["trainer"]["precision"] == wanted
