"""Ends a run after the iteration in progress on Ctrl-C, SIGTERM or a closed terminal, with everything saved."""

from __future__ import annotations

import errno
import signal
import sys
import termios
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.common.launch import is_first_process
from lit_rlvr.common.log import log
from lit_rlvr.common.terminal import discard_output
from lit_rlvr.distributed.collectives import all_max
from lit_rlvr.errors import RunStopped
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.run.loggers import callback_of


class StoppedAtOnce(KeyboardInterrupt):
    """Raised by a second signal, which ends the run in the middle of an iteration.

    Args:
        signal_number: the second signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped at once by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class StopOnSignal(Callback):
    """The end of a run by Ctrl-C or SIGTERM: after the iteration, or at once at the second signal.

    The run saves a checkpoint at the end of the iteration, and stops where the next one would begin: only then are the
    iteration's logs and validation complete.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._stopping = 0

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which restores the original handlers when the run ends."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` ignores it
            signal.signal(signal.SIGHUP, self._handle)

    on_train_start = on_sanity_check_start

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_closed_terminal()
            if self._received is not None:  # both the kernel and the shell send it when a terminal is closed
                return
        if self._received is not None:
            raise StoppedAtOnce(number)
        self._received = number
        if is_first_process():  # a terminal signals all processes
            log.warning(
                "%s: finishing this iteration, then saving; repeat to stop at once", signal.Signals(number).name
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stopping = all_max(self._received or 0, pl_module.device)  # all processes stop after the same iteration
        if self._stopping:
            callback_of(trainer, RunCheckpoint).request()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stopping:
            raise RunStopped(self._stopping, saved=callback_of(trainer, RunCheckpoint).enabled)


def leave_closed_terminal() -> None:
    """Discard further output to a closed terminal, where writing would fail and end the run."""
    for stream in (sys.stdout, sys.stderr):
        try:
            termios.tcgetattr(stream.fileno())
        except termios.error as error:
            if error.args[0] == errno.EIO:
                discard_output(stream.fileno())
        except OSError:  # not a file
            continue
