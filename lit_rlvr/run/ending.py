"""Whether a run finished, and its final validation."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import Trainer


def is_complete(run: Path) -> bool:
    """Whether the run in a folder finished, including by a collapse; a stopped run's summary says that it stopped."""
    summary = run / "summary.json"
    if not summary.is_file():
        return False
    stopped = json.loads(summary.read_text())["stopped"]
    return stopped is None or stopped.startswith("collapse")


def validate_now(trainer: Trainer) -> None:
    """Validate within `fit`, as Lightning does between two iterations, if there is a validation set."""
    if trainer.enable_validation:
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting, trainer.validating = False, True  # restarting means resuming within a validation
        loop.run()
        trainer.training = True
