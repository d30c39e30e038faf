"""`live.json`: the present state of a run, for `lit-rlvr watch`."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.run_files import LIVE
from lit_rlvr.common.terminal import progress
from lit_rlvr.rollout.callback import rollout_of
from lit_rlvr.run.loggers import callback_of, run_root
from lit_rlvr.run.outputs import peak_memory_mb
from lit_rlvr.run.progress import ProgressEstimator

WRITE_SECONDS = 1.0
"""Seconds between two writes."""


class LiveFile(Callback):
    """The file with rank 0's stage, written to the run folder every second in a thread of its own.

    The file is only for display; no run reads it. `at` is a heartbeat that distinguishes live from killed runs.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            progress.begin("loading the model")

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self._thread is not None:
            return
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(trainer,), name="lit-rlvr-live", daemon=True)
        self._thread.start()

    on_train_start = on_sanity_check_start

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        progress.part = f"validation {batch.name}"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        progress.part = ""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        """Write the last state, and end the thread."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        progress.part = ""
        progress.begin("ended")
        self._write(trainer)

    def _run(self, trainer: Trainer) -> None:
        while not self._stop.wait(WRITE_SECONDS):
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        with suppress(OSError):  # a full disk ends the run where its results are written, with a message
            write_atomically(run_root(trainer) / LIVE, json.dumps(self._state(trainer)) + "\n")

    def _state(self, trainer: Trainer) -> dict[str, Any]:
        now = time.time()
        estimator = callback_of(trainer, ProgressEstimator)
        total_steps = estimator.steps(trainer)
        return {
            "stage": progress.stage,
            "part": progress.part,
            "since": progress.since,
            "done": progress.done,
            "total": progress.total,
            "tokens_per_second": progress.tokens / max(now - progress.since, 1e-3),
            "waiting": {name: now - since for name, since in list(progress.waiting.items())},
            "step": trainer.global_step,
            "steps": total_steps,
            "seconds_left": estimator.seconds(trainer.global_step, total_steps),
            "memory_mb": round(peak_memory_mb()),
            "engine": rollout_of(trainer).engine.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "at": now,
        }
