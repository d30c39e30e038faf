"""SIGKILL at any moment: the resumed run is the uninterrupted one."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import CONSOLE_SCRIPT, FIT, assert_same_run, child_environment, fit, summary, to

from lit_rlvr.algorithms.evaluation import EvaluatingModule
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.run.folder import _drop_after

CLI = Callable[..., Any]


@pytest.mark.slow
def test_killed_at_any_moment_a_run_goes_on_exactly(run_folder: Path, lit_rlvr: CLI) -> None:
    options = ("--checkpoint.every", 1, "--trainer.max_steps", 60, "--trainer.val_check_interval", 30)
    fit(lit_rlvr, *to("whole"), *options)
    arguments = [str(CONSOLE_SCRIPT), *FIT, *map(str, options)]
    samples, resume, last = run_folder / "run" / "completions.jsonl", [], -1
    for kill in range(3):
        process = subprocess.Popen([*arguments, *resume], env=child_environment(), stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not (samples.is_file() and samples.read_text().count('"sample": 0,') > last + 7):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.013 * kill)
        process.kill()
        process.communicate()
        last, resume = samples.read_text().count('"sample": 0,'), ["--ckpt_path", "last"]
    fit(lit_rlvr, *options, "--ckpt_path", "last")
    run, whole = summary(run_folder / "run"), summary(run_folder / "whole")
    assert_same_run(run_folder / "run", run_folder / "whole", resumed=run["resumed_from_step"])
    assert 0 < run["resumed_from_step"] < 60 and whole["steps"] == 60


def test_ended_right_after_a_checkpoint_nothing_is_missing(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Lightning has logged the iteration."""
    fit(lit_rlvr, *to("whole"))
    save = RunCheckpoint.save

    def end_after(self: RunCheckpoint, trainer: Any) -> Path:
        save(self, trainer)
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed here"):
        patch.setattr(RunCheckpoint, "save", end_after)
        lit_rlvr(*FIT, *to("parts"), "--checkpoint.every", 2)
    fit(lit_rlvr, *to("parts"), "--ckpt_path", "last")
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=2)


@pytest.mark.parametrize("end", [(), ("--trainer.max_steps", -1, "--budget.samples", 96)], ids=["steps", "samples"])
def test_ended_in_its_last_validation_a_run_is_completed(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch, end: tuple[Any, ...]
) -> None:
    fit(lit_rlvr, *to("whole"), *end)
    validated = EvaluatingModule.on_validation_epoch_end

    def end_after(self: EvaluatingModule) -> None:
        validated(self)
        if self.updates == 6:
            raise RuntimeError("killed here")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed here"):
        patch.setattr(EvaluatingModule, "on_validation_epoch_end", end_after)
        lit_rlvr(*FIT, *to("parts"), *end)
    assert not (run_folder / "parts" / "summary.json").exists()
    fit(lit_rlvr, *to("parts"), *end, "--ckpt_path", "last")
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=6)
    written = (run_folder / "parts" / "summary.json").stat().st_mtime_ns
    fit(lit_rlvr, *to("parts"), *end, "--ckpt_path", "last")
    assert (run_folder / "parts" / "summary.json").stat().st_mtime_ns == written, "it was complete"


def test_records_after_a_checkpoint_and_a_torn_one_are_dropped(tmp_path: Path) -> None:
    """Completions may hold what Python takes for the end of a line."""
    path = tmp_path / "completions.jsonl"
    whole = ['{"step": 1, "completion": "a\u2028b\x85c"}\n', '{"step": 2, "completion": ""}\n']
    path.write_bytes("".join([*whole, '{"step": 3}\n', '{"step": 3, "completion": "\u2028']).encode()[:-1])
    _drop_after(path, 2)
    assert path.read_text() == "".join(whole)
