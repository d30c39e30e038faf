"""The watch over a run's processes: when one dies, the others report why and exit instead of waiting for it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.common.terminal import printable
from lit_rlvr.distributed.collectives import gather_objects, lost_peer, rank, world_size
from lit_rlvr.distributed.fsdp2 import FSDP2, extend_timeouts
from lit_rlvr.errors import RunStopped, UserError, first_line
from lit_rlvr.run.rank_zero import RANK_ZERO_FILTER, run_store

_log = logging.getLogger("lit_rlvr")

HEARTBEAT_SECONDS = 1.0
"""Seconds between two heartbeats."""
MAX_MISSED_HEARTBEATS = 40
"""Missed heartbeats after which a process counts as dead. The watcher counts its own beats, because the machine may
have suspended all processes."""
HEARTBEAT_TIMEOUT = MAX_MISSED_HEARTBEATS * HEARTBEAT_SECONDS
EXIT_SECONDS = 1.0
"""Seconds that a process has to exit through its own exception before it is killed."""
REASON_SECONDS = 5.0
"""Seconds that a process searches for the reason why another one does not answer."""
REPORT_SECONDS = 20.0
"""Seconds that processes wait for each other's error messages before they exit."""
NO_MESSAGE = "another process ended without a message; was it killed for running out of memory?"


class RankWatch(Callback):
    """Sends heartbeats to the store that all processes of the run share, and watches the next process's.

    A process that fails writes the cause to the store; its neighbour does so if its heartbeats stop. Every process that
    reads the cause reports it and exits. A launcher such as torchrun kills all processes when one exits. So the failed
    process stays until the others have reported the cause, and they stay until it has exited.

    Both parts run in threads of their own: the main thread may wait forever for a dead process, and the thread of the
    heartbeats for the store.
    """

    def __init__(self) -> None:
        self._store: Any = None
        self._rank = 0  # read once: while an engine starts, its process group is the default one
        self._missed_answers = 0  # own heartbeats since the store last answered
        self._reason = ""
        self._is_done = threading.Event()
        self._is_leaving = threading.Event()  # this process failed; its heartbeats continue until it exits
        self._has_reported = threading.Event()  # this process has reported why it ends
        self._failed_has_ended = threading.Event()  # the process that failed has ended

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if world_size() == 1:
            return
        self._store = run_store().clone()  # the main thread may block the original
        self._rank = rank()
        extend_timeouts(trainer.strategy)  # this class notices those that have died
        _retire_observer()
        for event in (self._is_done, self._is_leaving, self._has_reported, self._failed_has_ended):
            event.clear()
        for work in (self._exchange_heartbeats, self._watch_store):
            threading.Thread(target=work, args=(trainer,), name="lit-rlvr-ranks", daemon=True).start()
        check_same_checkpoint(trainer.ckpt_path)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._store is not None:
            trainer.strategy.barrier()  # so that no process watches one that has finished
            self._is_done.set()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Report the exception to the other processes; if another process's death caused it, find out why that one
        died.

        A checkpoint in flight is written first, because that needs all processes.
        """
        if isinstance(trainer.strategy, FSDP2) and not (
            isinstance(exception, KeyboardInterrupt) or lost_peer(exception)
        ):
            if trainer.strategy.is_saving:
                _log.warning("%s; the checkpoint in flight is written first", first_line(exception))
            try:
                trainer.strategy.finish_saving()
            except Exception as error:
                _log.warning("the checkpoint in flight was not written: %s", first_line(error))
        self._is_leaving.set()
        if self._store is None or isinstance(exception, RunStopped):
            self._is_done.set()
        elif lost_peer(exception):
            self._find_reason(trainer)
            self._exit(trainer)
        else:
            why = str(exception) if isinstance(exception, UserError) else first_line(exception)
            with suppress(RuntimeError):  # the store is gone, and so are the others
                self._store.compare_set("lit-rlvr/failed", "", str(self._rank))
                self._publish_reason(f"process {self._rank} ended: {why}")
                deadline = time.monotonic() + REPORT_SECONDS
                reported = self._store.add("lit-rlvr/said", 1)
                while reported < world_size() and time.monotonic() < deadline:
                    time.sleep(0.1)
                    reported = self._store.add("lit-rlvr/said", 0)

    def _exchange_heartbeats(self, trainer: Trainer) -> None:
        neighbour = (self._rank + 1) % world_size()
        last_count, missed = 0, 0
        while not self._is_done.wait(HEARTBEAT_SECONDS):
            try:
                self._store.add(f"lit-rlvr/beat/{self._rank}", 1)
                if self._reason:
                    self._wait_for_failed()
                    return
                if self._is_leaving.is_set():
                    continue
                count = self._store.add(f"lit-rlvr/beat/{neighbour}", 0)
                self._missed_answers = 0
                last_count, missed = count, (missed + 1 if count == last_count else 0)
                if missed > MAX_MISSED_HEARTBEATS:
                    self._publish_reason(f"process {neighbour} has not responded for {HEARTBEAT_TIMEOUT:.0f} s")
                self._read_reason(trainer)
            except RuntimeError:  # the store died with its process
                self._reason = self._reason or NO_MESSAGE
                self._failed_has_ended.set()
                return

    def _wait_for_failed(self) -> None:
        """Wait until the failed process's heartbeats end; return at once if it failed without a message."""
        self._has_reported.wait(REPORT_SECONDS)
        self._store.add("lit-rlvr/said", 1)
        failed = self._store.get("lit-rlvr/failed").decode() if self._store.check(["lit-rlvr/failed"]) else None
        last_count = -1
        while failed is not None and last_count != (count := self._store.add(f"lit-rlvr/beat/{failed}", 0)):
            last_count = count
            time.sleep(3 * HEARTBEAT_SECONDS)
        self._failed_has_ended.set()

    def _watch_store(self, trainer: Trainer) -> None:
        while not self._is_done.wait(HEARTBEAT_SECONDS) and not self._is_leaving.is_set():
            self._missed_answers += 1
            if self._missed_answers > MAX_MISSED_HEARTBEATS:
                self._reason = f"the store of the run, in process 0, has not answered for {HEARTBEAT_TIMEOUT:.0f} s"
                self._failed_has_ended.set()
            if self._reason and not self._is_leaving.wait(EXIT_SECONDS):
                self._exit(trainer)

    def _publish_reason(self, reason: str) -> None:
        """Write a reason to the store, which keeps only the first one."""
        self._store.compare_set("lit-rlvr/end", "", reason)

    def _read_reason(self, trainer: Trainer) -> None:
        """Read the reason from the store, or write one if a child of this process has died."""
        if not self._store.check(["lit-rlvr/end"]):
            children = enumerate(getattr(trainer.strategy.launcher, "procs", []), 1)
            ended = next(((number, child.returncode) for number, child in children if child.poll()), None)
            if ended is None:
                return
            number, code = ended
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            self._publish_reason(f"process {number} {how}")
        self._reason = self._store.get("lit-rlvr/end").decode()

    def _find_reason(self, trainer: Trainer) -> None:
        deadline = time.monotonic() + REASON_SECONDS
        while not self._reason and time.monotonic() < deadline:
            try:
                self._read_reason(trainer)
            except RuntimeError:
                break
            time.sleep(0.1)

    def _exit(self, trainer: Trainer) -> None:
        """Exit at once and kill this process's children: the main thread may be waiting forever."""
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # the progress bar hides it
        message = f"{self._reason or NO_MESSAGE}; so process {self._rank} exits, resume with --ckpt_path last"
        print(f"{show_cursor}lit-rlvr: error: {printable(message)}", file=sys.stderr, flush=True)
        self._has_reported.set()
        self._failed_has_ended.wait(REPORT_SECONDS)
        for child in getattr(trainer.strategy.launcher, "procs", []):
            with suppress(subprocess.TimeoutExpired):  # it may still report something
                child.wait(REASON_SECONDS)
            child.kill()
        os._exit(2)


def check_same_checkpoint(path: str | Path | None) -> None:
    """Check that all processes resume from the same checkpoint, or none does. Collective.

    Raises:
        UserError: they do not; the folder of a run is on a machine's own disk, for example.
    """
    names = gather_objects("no checkpoint" if path is None else Path(path).name)
    for number, name in enumerate(names):
        if name != names[0]:
            raise UserError(
                f"--ckpt_path: process 0 begins from {names[0]}, process {number} from {name}; all machines need the "
                "same trainer.default_root_dir"
            )


def _retire_observer() -> None:
    """Let `RankWatch` alone watch the processes that Lightning launched.

    Lightning's own thread kills this process as soon as another one has ended, before either has reported why.
    """
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []


class EndOfSetUp(Callback):
    """Lets every process print its messages from the first validation or iteration on."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        RANK_ZERO_FILTER.set_up = False

    on_train_start = on_validation_start = on_sanity_check_start
