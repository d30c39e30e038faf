"""`lit-rlvr` commands in processes of their own that start at once: forks of a server that has imported everything.

The forks of `multiprocessing`, because a fork of pytest would have its threads and what other tests changed.
"""

import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import pytest

HANGS = 900
"""Seconds after which a command is ended, and its log says where it was."""


class Server:
    """Starts with its first process, and ends with this one.

    Args:
        imports: the module of tests/helpers that has imported everything.
    """

    def __init__(self, imports: str) -> None:
        self.server = forkserver.ForkServer()
        self.server.set_forkserver_preload([imports, "forked"])

    def start(self, process: ForkServerProcess) -> None:
        """Start a process as a fork of the server."""
        before = os.environ.get("PYTHONPATH", "")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forkserver, "connect_to_new_process", self.server.connect_to_new_process)
            patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), before]))
            process.start()


COMMANDS, VLLM = Server("warm"), Server("warm_vllm")
SECOND_RANKS = Server("warm")
"""Its processes hash texts in another way: ranks that go through a set in different orders differ, as they would."""


class Descriptor:
    """An open file that a process gets, under a number of its own there."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (DupFd(self.number),)


def _detach(sent: Any) -> int:
    return sent.detach()


class Forked:
    """A command in a fork: what callers use of a `subprocess.Popen`.

    Args:
        log: gets what it says; None = `communicate` returns it.
        pass_fds: descriptors that it keeps open.
        first: a module that is imported before the command starts.
        group: the process group that it belongs to; 0 = one of its own.
        pictures: whether its run draws `curves.png`, a third of its time.
        server: what it is a fork of.
    """

    def __init__(
        self,
        arguments: Sequence[Any],
        log: IO[Any] | None,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
        first: str = "",
        group: int = 0,
        pictures: bool = False,
        server: Server = COMMANDS,
    ) -> None:
        self._began = time.monotonic()
        self._files = [log or tempfile.TemporaryFile("a+") for _ in range(2)]  # noqa: SIM115
        files = [Descriptor(file.fileno()) for file in self._files]
        kept = [Descriptor(number) for number in pass_fds]
        told = [str(argument) for argument in arguments], dict(environment), str(cwd or Path.cwd())
        self.process = ForkServerProcess(target=_become, args=(files, kept, *told, first, group, pictures), daemon=True)
        server.start(self.process)
        self.pid = int(self.process.pid or 0)

    def said(self) -> str:
        """Its errors so far."""
        self._files[1].seek(0)
        return self._files[1].read()

    def communicate(self, timeout: float = HANGS) -> tuple[str, str]:
        """Wait for its end; return its output and its errors."""
        self.wait(timeout)
        self._files[0].seek(0)
        return self._files[0].read(), self.said()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        if self.returncode is None and time.monotonic() > self._began + HANGS:
            os.kill(self.pid, signal.SIGABRT)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("lit-rlvr", timeout or 0)
            self.process.join(0.05)
        return status

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _join(group: int) -> None:
    """Join a process group, whose first process may not have begun it yet; or begin one."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            return os.setpgid(0, group)
        except PermissionError:
            time.sleep(0.01)
    os.setpgid(0, 0)


def _become(
    files: list[int],
    kept: list[int],
    arguments: list[str],
    environment: dict[str, str],
    cwd: str,
    first: str,
    group: int,
    pictures: bool,
) -> None:
    """Run a command in this process, and end it."""
    from lit_rlvr.cli.main import run
    from lit_rlvr.run import outputs

    status = 1
    try:
        _join(group)
        for number, file in zip((1, 2), files, strict=True):
            os.dup2(file, number)
            os.close(file)
        faulthandler.enable(2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        multiprocessing.current_process().daemon = False  # it may start processes
        sys.modules["__main__"] = ModuleType("__main__")  # as a script's, by which Lightning starts other ranks
        sys.argv = [str(Path(sys.executable).with_name("lit-rlvr")), *arguments]
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
        os.chdir(cwd)
        if not pictures:
            outputs.plot_run = lambda *_: None
        if first:
            import_module(first)
        status = run(arguments)
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
