"""Ctrl-C and SIGTERM end a run after the iteration in progress, with everything saved."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

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
    """The first signal lets the iteration finish (an iteration is atomic); a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number
        _log.warning("%s: finishing this iteration, then saving; again to stop at once", signal.Signals(number).name)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if self._received is None:
            return
        checkpoint: Any = trainer.checkpoint_callback
        if checkpoint is not None and not trainer.sanity_checking:
            checkpoint.save(trainer)
        raise RunStopped(self._received)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
