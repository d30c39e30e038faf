"""When one process of a run dies, makes the others report why and exit instead of waiting for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.distributed.collectives import lost_peer, rank, world_size
from lit_rlvr.errors import RunStopped, UserError, first_line
from lit_rlvr.run.rank_zero import FIRST_SPEAKS
from lit_rlvr.terminal import printable

BEAT = 1.0
"""Seconds between two heartbeats."""
SILENCE = 40
"""Missed heartbeats after which a process counts as dead, counted in the watcher's own beats: all processes may have
been suspended for a while."""
GRACE = 1.0
"""Seconds a process has to exit through its own exception before it is killed."""
PATIENCE = 5.0
"""Seconds to find out why a process does not answer."""
LAST_WORDS = 20.0
"""Seconds that processes wait for each other's error messages before they exit."""
NO_WORD = "another process ended without a message; was it killed for running out of memory?"


class RankWatch(Callback):
    """Each process writes heartbeats to the store that all processes of the run share, and watches the next process's.

    The first cause of failure, an exception or missing heartbeats, is written to the store; every process that reads it
    reports it and exits. A launcher such as torchrun kills all processes when one exits, so the failed one stays until
    the others have reported the cause, and they stay until it has printed its error and is gone. This runs in threads,
    because the main thread may be waiting for a process that will never answer, and so may the thread that talks to the
    store.
    """

    def __init__(self) -> None:
        self._store: Any = None
        self._rank = 0  # read once: while an engine starts, its world is the default one
        self._unanswered = 0  # beats since the store answered
        self._reason = ""
        self._done = threading.Event()
        self._leaving = threading.Event()  # by an exception of its own; the heartbeats go on to the end
        self._said = threading.Event()  # this process has reported why it ends
        self._gone = threading.Event()  # the process that failed has ended

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if world_size() == 1:
            return
        shared: Any = dist.distributed_c10d._get_default_store()
        self._store = shared.clone()  # the main thread may block the original
        self._rank = rank()
        _retire_observer()
        for event in (self._done, self._leaving, self._said, self._gone):
            event.clear()
        for work in (self._talk, self._watch):
            threading.Thread(target=work, args=(trainer,), name="lit-rlvr-ranks", daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._store is not None:
            trainer.strategy.barrier()  # nobody watches a process that has finished
            self._done.set()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others; if the exception was caused by another process's death, find out why that one died."""
        self._leaving.set()
        if self._store is None or isinstance(exception, RunStopped):
            self._done.set()
        elif lost_peer(exception):
            self._find_reason(trainer)
            self._end(trainer)
        else:
            why = str(exception) if isinstance(exception, UserError) else first_line(exception)
            with suppress(RuntimeError):  # the store is gone, and so are the others
                self._store.compare_set("lit-rlvr/failed", "", str(self._rank))
                self._tell(f"process {self._rank} ended: {why}")
                deadline = time.monotonic() + LAST_WORDS
                said = self._store.add("lit-rlvr/said", 1)
                while said < world_size() and time.monotonic() < deadline:
                    time.sleep(0.1)
                    said = self._store.add("lit-rlvr/said", 0)

    def _talk(self, trainer: Trainer) -> None:
        neighbour = (self._rank + 1) % world_size()
        heard, silent = 0, 0
        while not self._done.wait(BEAT):
            try:
                self._store.add(f"lit-rlvr/beat/{self._rank}", 1)
                if self._reason:
                    self._wait_for_failed()
                    return
                if self._leaving.is_set():
                    continue
                beats = self._store.add(f"lit-rlvr/beat/{neighbour}", 0)
                self._unanswered = 0
                heard, silent = beats, (silent + 1 if beats == heard else 0)
                if silent > SILENCE:
                    self._tell(f"process {neighbour} has not responded for {SILENCE * BEAT:.0f} s")
                self._read(trainer)
            except RuntimeError:  # the store died with its process
                self._reason = self._reason or NO_WORD
                self._gone.set()
                return

    def _wait_for_failed(self) -> None:
        """Until the failed process's heartbeats end; at once if it failed without a word."""
        self._said.wait(LAST_WORDS)
        self._store.add("lit-rlvr/said", 1)
        failed = self._store.get("lit-rlvr/failed").decode() if self._store.check(["lit-rlvr/failed"]) else None
        heard = -1
        while failed is not None and heard != (beats := self._store.add(f"lit-rlvr/beat/{failed}", 0)):
            heard = beats
            time.sleep(3 * BEAT)
        self._gone.set()

    def _watch(self, trainer: Trainer) -> None:
        while not self._done.wait(BEAT) and not self._leaving.is_set():
            self._unanswered += 1
            if self._unanswered > SILENCE:
                self._reason = f"the store of the run, in process 0, has not answered for {SILENCE * BEAT:.0f} s"
                self._gone.set()
            if self._reason and not self._leaving.wait(GRACE):
                self._end(trainer)

    def _tell(self, reason: str) -> None:
        """Write a reason to the store; only the first one is kept."""
        self._store.compare_set("lit-rlvr/end", "", reason)

    def _read(self, trainer: Trainer) -> None:
        """Read the reason in the store, or write one if a child of this process has died."""
        if not self._store.check(["lit-rlvr/end"]):
            children = enumerate(getattr(trainer.strategy.launcher, "procs", []), 1)
            ended = next(((number, child.returncode) for number, child in children if child.poll()), None)
            if ended is None:
                return
            number, code = ended
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            self._tell(f"process {number} {how}")
        self._reason = self._store.get("lit-rlvr/end").decode()

    def _find_reason(self, trainer: Trainer) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self._reason and time.monotonic() < deadline:
            try:
                self._read(trainer)
            except RuntimeError:
                break
            time.sleep(0.1)

    def _sentence(self) -> str:
        return f"{self._reason or NO_WORD}; so process {self._rank} exits, resume with --ckpt_path last"

    def _end(self, trainer: Trainer) -> None:
        """Exit at once and kill this process's children: the main thread may be waiting forever."""
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # the progress bar hides it
        print(f"{show_cursor}lit-rlvr: error: {printable(self._sentence())}", file=sys.stderr, flush=True)
        self._said.set()
        self._gone.wait(LAST_WORDS)
        for child in getattr(trainer.strategy.launcher, "procs", []):
            with suppress(subprocess.TimeoutExpired):  # it may still report something
                child.wait(PATIENCE)
            child.kill()
        os._exit(2)


def _retire_observer() -> None:
    """Leave the processes that Lightning launched to `RankWatch`: Lightning's own thread kills this process as soon as
    another one has ended, before either has reported why."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []


class SetUpEnds(Callback):
    """Lets every process print its messages once something is generated."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        FIRST_SPEAKS.set_up = False

    on_train_start = on_validation_start = on_sanity_check_start
