"""Ctrl-C and SIGTERM end a run after the iteration in progress, with everything saved."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.distributed import all_max
from lit_rlvr.run.checkpoint import RunCheckpoint

_log = logging.getLogger("lit_rlvr")


class RunStopped(Exception):
    """The run was asked to stop and has stopped cleanly.

    Args:
        signal_number: which signal asked.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class StopOnSignal(Callback):
    """The first signal lets the iteration finish (an iteration is atomic); a second Ctrl-C stops at once.

    A checkpoint is taken at the end of the iteration, and the run stops where the next one would begin: only there
    are the last one's logs and validation done.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._stopping = 0

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    def _listen(self) -> None:
        """Take the signals over from Lightning, which puts back the handlers of before the run at its end."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number
        _log.warning("%s: finishing this iteration, then saving; again to stop at once", signal.Signals(number).name)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stopping = all_max(self._received or 0, pl_module.device)  # all processes stop after the same iteration
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for checkpoint in (c for c in callbacks if isinstance(c, RunCheckpoint)):
            checkpoint.wanted = self._stopping > 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stopping:
            raise RunStopped(self._stopping)
