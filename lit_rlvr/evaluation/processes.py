"""Runs `lit-rlvr` commands as separate processes, and `lit-rlvr evaluate --devices N` with one process per GPU."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lit_rlvr.errors import UserError
from lit_rlvr.workers.worker import PR_SET_PDEATHSIG

if TYPE_CHECKING:
    from lit_rlvr.engines.base import RolloutEngine

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def start_command(
    arguments: Sequence[str], log: IO[str], environment: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start `lit-rlvr` with these arguments.

    If this process is killed, the command saves and exits, as on Ctrl-C. It imports our modules even if
    the current folder has modules of the same names.

    Args:
        arguments: the arguments of `lit-rlvr`.
        log: file for the command's output.
        environment: environment variables of the command.
        pass_fds: descriptors that the command keeps open.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "lit_rlvr", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**environment, "PYTHONSAFEPATH": "1"},
        pass_fds=pass_fds,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def thread_environment(commands: int) -> dict[str, str]:
    """Return the environment variable that divides the cores among several commands; {} if the user has set it."""
    if commands == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // commands))}


def _end_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def stop_commands(processes: Collection[Any]) -> None:
    """Let running commands, processes or jobs of a cluster, save and exit; a second Ctrl-C does not wait for them."""
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
        raise


SHARE_VARIABLE = "LIT_RLVR_SHARE"
"""Environment variable with the share of a process, such as 0/4."""
BEGINS_GROUP = b'"sample": 0, "samples": '
"""Text in the first line of each question's completions, and in no other line."""


@dataclass(frozen=True)
class Share:
    """Every `count`-th question, beginning with `number`."""

    number: int
    count: int

    @classmethod
    def of_this_process(cls) -> Share | None:
        """Return this process's share; None if `run_shares` did not start it."""
        share = os.environ.get(SHARE_VARIABLE)
        if share:
            return cls(*map(int, share.split("/")))
        return None

    @property
    def file(self) -> str:
        """The name of the share's file of completions."""
        return f"completions-{self.number}-of-{self.count}.jsonl"


def check_devices(devices: int, engine: RolloutEngine, samples: bool) -> None:
    """Refuse a number of processes that cannot work.

    Args:
        devices: the number of processes.
        engine: the engine that samples.
        samples: whether the command samples completions, instead of only judging them.

    Raises:
        UserError: says why.
    """
    import torch

    gpus = torch.cuda.device_count()
    if devices > 1 and not samples:
        raise UserError("--devices: judging given --completions uses no GPU; leave it at 1")
    if devices > 1 and not engine.in_process:
        raise UserError(f"--devices: {engine.name} runs on its own GPUs; leave it at 1")
    if gpus and devices > gpus:
        raise UserError(f"--devices: {devices}, but this machine has {gpus} GPU(s)")


def run_shares(arguments: Sequence[str], devices: int, out: Path, answered: Callable[[], None]) -> None:
    """Run `lit-rlvr evaluate` with these arguments in `devices` processes, which end with this one.

    Args:
        arguments: the arguments of `evaluate`.
        devices: the number of processes.
        out: the evaluation's folder; each process's output goes to a log file there until all are done.
        answered: called once per answered question.

    Raises:
        UserError: a process failed; the others are ended.
    """
    shares = [Share(k, devices) for k in range(devices)]
    logs = [out / f"process-{share.number}.log" for share in shares]
    files = [out / share.file for share in shares]
    seen = 0
    running: list[subprocess.Popen[bytes]] = []
    try:
        for share, log in zip(shares, logs, strict=True):
            running.append(_start(arguments, share, log))
        while True:
            ended = [process.poll() for process in running]
            counts = []
            for path in files:
                if path.exists():
                    counts.append(path.read_bytes().count(BEGINS_GROUP))
            count = sum(counts)
            for _ in range(count - seen):
                answered()
            seen = count
            failed = next((k for k, status in enumerate(ended) if status), None)
            if failed is not None:
                raise UserError(f"--devices: process {failed} failed: {_last_line(logs[failed])} (see {logs[failed]})")
            if None not in ended:
                break
            time.sleep(0.5)
    finally:
        stop_commands(running)
    for log in logs:
        log.unlink()


def _start(arguments: Sequence[str], share: Share, log: Path) -> subprocess.Popen[bytes]:
    """Start one process on its GPU, or with its part of the CPU's cores."""
    import torch

    environment = os.environ | {SHARE_VARIABLE: f"{share.number}/{share.count}"}
    gpus = torch.cuda.device_count()
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[share.number]
    else:
        environment |= thread_environment(share.count)
    with log.open("w") as file:
        return start_command(["evaluate", *arguments], file, environment)


def _last_line(log: Path) -> str:
    lines = []
    for line in log.read_text(errors="replace").splitlines():
        if line.strip():
            lines.append(line)
    if lines:
        return lines[-1].removeprefix("lit-rlvr: error: ")
    return "it said nothing"
