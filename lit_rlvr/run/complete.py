"""Whether a run came to its own end, and the validation that belongs there."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import Trainer


def is_complete(run: Path) -> bool:
    """Whether the run of a folder came to its own end, a collapse included; one that was stopped leaves a summary too,
    which says so."""
    summary = run / "summary.json"
    if not summary.is_file():
        return False
    stopped = json.loads(summary.read_text())["stopped"]
    return stopped is None or stopped.startswith("collapse")


def validate_now(trainer: Trainer) -> None:
    """Validate within `fit`, as Lightning does between two iterations, if there is a validation set."""
    if trainer.enable_validation:
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting, trainer.validating = False, True  # restarting: from the middle of an earlier validation
        loop.run()
        trainer.training = True
