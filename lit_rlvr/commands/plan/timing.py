"""`lit-rlvr plan --time`: measures some iterations of a config on this machine, and extrapolates to the whole run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lit_rlvr.common.terminal import Terminal, show_result
from lit_rlvr.errors import UserError

MEASURED = "00:00:01:00"
"""Duration of the measured training as days:hours:minutes:seconds; the run finishes the iteration in progress."""
HOUR = 3600
ERROR_PREFIX = "lit-rlvr: error: "
"""Prefix of the error lines of a failed command."""


def time_run(arguments: Sequence[str]) -> None:
    """Run the config for about a minute in a temporary folder, and print seconds and hours of all of it.

    Args:
        arguments: the arguments of `fit`, with `--time`.

    Raises:
        UserError: `fit` refuses the config, or an option of the plan for other GPUs is given.
    """
    config = [argument for argument in arguments if argument != "--time"]
    for option in ("--gpus", "--lengths"):
        if any(argument.partition("=")[0] == option for argument in config):
            raise UserError(f"--time: it measures on this machine; leave out {option}, or leave out --time")
    sizes = _fit(config, "--dry-run")["sizes"]
    with TemporaryDirectory(prefix="lit-rlvr-") as folder:
        summary = _fit(
            config, "--trainer.default_root_dir", str(Path(folder) / "run"), "--trainer.max_time", MEASURED,
            "--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0", "--run.show_every", "0",
            "--trainer.enable_checkpointing", "false", "--trainer.logger", "false", "--trackers", "null",
        )  # fmt: skip
    found = estimate(sizes, summary)
    show_result(found, lambda: print_estimate(found))


def _fit(config: Sequence[str], *more: str) -> dict[str, Any]:
    """Run `lit-rlvr fit` in another process, and return its JSON."""
    command = [sys.executable, "-m", "lit_rlvr", "fit", *config, *more, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        errors = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
        raise UserError(*(errors or lines[-1:]))
    return dict(json.loads(done.stdout))


def estimate(sizes: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hours of a run, from the medians of the measured iterations.

    Assume that validation generates as fast as training does, and completions of the same length.

    Args:
        sizes: the sizes of `fit --dry-run`.
        summary: the summary of the measured run.
    """
    seconds = summary["seconds_per_step"]
    training = None if sizes["iterations"] is None else sizes["iterations"] * seconds["step"] / HOUR
    completion = seconds["generate"] / sizes["sequences"]
    validation = sizes["validations"] * sizes["validation_completions"] * completion / HOUR
    return {
        "measured_iterations": summary["iterations"],
        "seconds_per_iteration": seconds["step"],
        "parts": {name: value for name, value in seconds.items() if name != "step"},
        "iterations": sizes["iterations"],
        "training_hours": training,
        "validation_hours": validation,
        "hours": None if training is None else training + validation,
    }


def print_estimate(found: Mapping[str, Any]) -> None:
    """Print an estimate as readable text."""
    console = Terminal(soft_wrap=True)
    parts = ", ".join(f"{name} {value:.2f}" for name, value in found["parts"].items())
    console.print(
        f"{found['measured_iterations']} iterations measured: {found['seconds_per_iteration']:.2f} s each ({parts} s)"
    )
    if found["hours"] is None:
        console.print(
            "trainer.max_steps, trainer.max_epochs and budget.samples set no limit, so the whole run has no length"
        )
        return
    console.print(
        f"{found['iterations']} iterations: {found['hours']:.3g} hours, of which about {found['validation_hours']:.2g} "
        "of validation; without loading and warm start"
    )
