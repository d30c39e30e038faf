"""Runs that a callback ends before their last step say why, and count as ended by themselves."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import CLI, fit, metrics, summary, to

from lit_rlvr.common.run_files import is_complete

OWN = """
from lightning.pytorch import Callback

class Ends(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= 2
"""


def callback(name: str, **options: Any) -> tuple[str, str]:
    return "--trainer.callbacks", json.dumps([{"class_path": name, "init_args": options}])


STOPS = {
    "no improvement": (
        (
            *callback("EarlyStopping", monitor="val/accuracy", mode="max", patience=1, min_delta=2.0),
            "--rollout.validate_every_rollouts",
            "1",
        ),
        "Monitored metric val/accuracy did not improve in the last 1 records",
        2,
    ),
    "a threshold": (
        callback("EarlyStopping", monitor="val/accuracy", mode="max", stopping_threshold=-1.0),
        "Stopping threshold reached: val/accuracy = ",
        3,
    ),
    "time": (("--trainer.max_time", "00:00:00:01", "--trainer.max_steps", "9999"), "trainer.max_time is over", None),
    "own": (callback("own_callbacks.Ends"), "own_callbacks.Ends set trainer.should_stop", 2),
}


@pytest.mark.first_case_fast
@pytest.mark.parametrize("case", STOPS)
def test_a_run_that_a_callback_ends_says_why(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    (run_folder / "own_callbacks.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "own_callbacks", raising=False)
    options, why, step = STOPS[case]
    done = fit(lit_rlvr, *options, *to("run"))
    found = summary(run_folder / "run")
    step = found["steps"] if step is None else step
    assert found["steps"] == step > 0 and found["stopped"].startswith(f"early stop: {why}"), found
    assert f"step {step}: stopped early: {why}" in done.err and "Signaling" not in found["stopped"]
    assert is_complete(run_folder / "run") and found["accuracy_after"] is not None
    assert len(metrics(run_folder / "run")) >= step
    if case != "no improvement":
        return
    report = lit_rlvr("report", "run", "--out", "report.html")
    assert report.status == 0 and f"stopped early, at step {step}: early stop: {why}" in Path("report.html").read_text()
    fit(lit_rlvr, *to("run"), "--ckpt_path", "last")  # without the callback
    assert summary(run_folder / "run")["stopped"] is None and summary(run_folder / "run")["steps"] == 6


ENDS = {
    "the last step": ("--trainer.max_steps", "3"),
    "the budget": ("--trainer.max_steps", "-1", "--budget.samples", "40"),
}


@pytest.mark.first_case_fast
@pytest.mark.parametrize("case", ENDS)
def test_a_run_that_reaches_its_end_is_not_stopped(run_folder: Path, lit_rlvr: CLI, case: str) -> None:
    watched = callback("EarlyStopping", monitor="val/accuracy", mode="max", patience=9)
    done = fit(lit_rlvr, *watched, *ENDS[case], *to("run"))
    assert summary(run_folder / "run")["stopped"] is None and "stopped early" not in done.err


UNKNOWN = {
    "EarlyStopping": (callback("EarlyStopping", monitor="val_accuracy"), "EarlyStopping.monitor: no metric is called"),
    "of a set": (callback("EarlyStopping", monitor="val/arithmetic/pass@8"), "there are val/accuracy, val/arithmetic/"),
    "ModelCheckpoint": (
        callback("ModelCheckpoint", monitor="val_loss"),
        "ModelCheckpoint.monitor: no metric is called",
    ),
    "no validation": (
        (*callback("EarlyStopping", monitor="val/accuracy"), "--trainer.limit_val_batches", "0"),
        "'val/accuracy'; there is no validation",
    ),
    "best": (("--checkpoint.best", "val/accuracy", "--trainer.limit_val_batches", "0"), "there is no validation"),
}


@pytest.mark.first_case_fast
@pytest.mark.parametrize("case", UNKNOWN)
@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_a_monitored_metric_that_nobody_measures_is_refused_first(
    run_folder: Path, lit_rlvr: CLI, case: str, dry: tuple[str, ...]
) -> None:
    options, said = UNKNOWN[case]
    refused = fit(lit_rlvr, *options, *dry, status=2)
    assert said in refused.err and "validation, before training" not in refused.err
    assert not (run_folder / "run").exists()


def test_metrics_that_are_measured_may_be_monitored(run_folder: Path, lit_rlvr: CLI) -> None:
    monitors = ("step", "rollout/reward", "val/arithmetic/accuracy")
    several = [{"class_path": "ModelCheckpoint", "init_args": {"monitor": monitor}} for monitor in monitors]
    fit(lit_rlvr, "--trainer.callbacks", json.dumps(several), *to("run"), "--trainer.max_steps", 3)
