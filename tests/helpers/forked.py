"""`lit-rlvr` commands in forks of this process, which has imported everything already."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import IO

import pytest

from lit_rlvr.cli.main import run
from lit_rlvr.rewards import shared_pool

HANGS = 300
"""Seconds after which a command is ended, and its log says where it was."""


class Forked:
    """A command in a fork: what callers use of a `subprocess.Popen`."""

    def __init__(
        self, arguments: Sequence[str], log: IO[str], environment: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        self.returncode: int | None = None
        self._began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(arguments, log.fileno(), environment)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            if not pid and time.monotonic() > self._began + HANGS:
                os.kill(self.pid, signal.SIGABRT)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        while (status := self.poll()) is None:
            time.sleep(0.01)
        return status

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _become(arguments: Sequence[str], log: int, environment: Mapping[str, str]) -> None:
    """Run a command in the forked process, and end it."""
    status = 1
    try:
        os.setsid()
        for number in (1, 2):
            os.dup2(log, number)
        faulthandler.enable(2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        of_the_parent = shared_pool()  # kept, so that its workers are not ended
        shared_pool.cache_clear()
        assert shared_pool() is not of_the_parent
        status = run([str(argument) for argument in arguments])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of `compare` and `evaluate` are forks. Their own way to start one is tested by the slow tests."""
    for module in ("commands.compare.cells", "evaluation.processes"):
        monkeypatch.setattr(f"lit_rlvr.{module}.start_command", Forked)
