"""`lit-rlvr fit --supervise N`: runs the training in a process of its own, and starts it again when it dies."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from lit_rlvr.common.files import MEMORY_FILE
from lit_rlvr.common.run_files import list_checkpoints, read_live
from lit_rlvr.common.terminal import wants_json
from lit_rlvr.errors import UserError
from lit_rlvr.run.monitor import ROLLBACKS
from lit_rlvr.run.run import LAUNCHERS

SILENCE = 300.0
"""Seconds without a heartbeat in `live.json` after which a run counts as hung."""
POLL_SECONDS = 0.5
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end the run for good; the run gets them too, and saves before it stops."""
ENDS = (*STOPS, signal.SIGPIPE)
"""Signals in exit statuses after which a run is not started again; SIGPIPE: the reader of its output has gone."""

_log = logging.getLogger("lit_rlvr")


def supervise(
    command: Sequence[str], arguments: Sequence[str], run: Path, limit: int, silence: float = SILENCE,
    resumes: bool = False,
) -> int:  # fmt: skip
    """Run `fit` until it ends by itself; after any other end go on from its last checkpoint.

    A CUDA fault, a killed process or a deadlock cannot be repaired inside the process, so all processes of the run are
    killed, and a new one resumes. A run that refuses its input before its first checkpoint is not started again. One
    that ran out of memory is, because it has left its next start a smaller token budget, and so is one that rolled
    back, which has left it a smaller learning rate.

    Args:
        command: the command up to `fit`. arguments: the arguments of `fit`.
        run: the run folder.
        limit: how many starts in a row may save no new checkpoint, and leave no smaller budget or rate.
        silence: seconds without a heartbeat after which a run counts as hung.
        resumes: whether the first start resumes a checkpoint, as do the next ones until there is a newer one. If not,
            checkpoints that are there belong to the run that this one replaces; they are put back if the new run fails
            before its first checkpoint.

    Returns:
        The exit status of the last start.

    Raises:
        UserError: `limit` is not positive, or a launcher that restarts processes has started this one.
    """
    if limit < 1:
        raise UserError(f"--supervise: {limit} starts without progress are too few; give at least 1")
    for variable, instead in LAUNCHERS.items():
        if variable in os.environ:
            raise UserError(f"--supervise: {instead}")
    newest, left, without_progress, status = _newest(run), _left(run), 0, 0
    first, given = newest, list(arguments)
    while True:
        status, reason, is_stopped = _run_once([*command, *given], run, silence)
        saved, newest = _newest(run) not in (None, newest), _newest(run)
        lowered, left = _left(run) != left, _left(run)
        has_own = newest not in (None, None if resumes else first)
        if is_stopped or status == 0 or status - 128 in ENDS or (status == 2 and not has_own and not lowered):
            return status
        without_progress = 1 if saved or lowered else without_progress + 1
        if without_progress > limit:
            _log.error("--supervise: %s; %d starts in a row saved no new checkpoint", reason, limit)
            return status
        as_before = newest == first if resumes else not has_own and (newest or not (run / "config.yaml").is_file())
        given = list(arguments) if as_before else [*arguments, "--overwrite", "false", "--ckpt_path", "last"]
        place = "where it began" if as_before else newest[0].name if newest and has_own else "the beginning"
        _log.warning("--supervise: %s; starting again from %s", reason, place)


def _run_once(command: Sequence[str], run: Path, silence: float) -> tuple[int, str, bool]:
    """Run the command in a process group of its own.

    Returns:
        Its exit status, how it ended, and whether a signal of `STOPS` came meanwhile.
    """
    began, reason, is_stopped = time.time(), "", False
    child = subprocess.Popen(command, start_new_session=True)

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopped
        is_stopped = True
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    before = {number: signal.signal(number, forward) for number in STOPS}
    try:
        while child.poll() is None:
            time.sleep(POLL_SECONDS)
            live = read_live(run)
            if live is not None and began < live["at"] < time.time() - silence and live["stage"] != "ended":
                reason = f"the run has not responded for {silence:.0f} s"
                break
    finally:
        with suppress(ProcessLookupError):  # its ranks, engine and workers, also where it ended by itself
            os.killpg(child.pid, signal.SIGKILL)
        status = child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    ended = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return (128 - status if status < 0 else status), reason or f"the run {ended}", is_stopped


def _newest(run: Path) -> tuple[Path, int] | None:
    """Return the newest checkpoint and when it was written: another run's may have the same name."""
    path = next(reversed(list_checkpoints(run)), None)
    return None if path is None else (path, path.stat().st_mtime_ns)


def _left(run: Path) -> list[str]:
    """Return what a run that ran out of memory, or rolled back, has written for its next start."""
    return [file.read_text() for file in (run / MEMORY_FILE, run / ROLLBACKS) if file.is_file()]


def fit_command() -> list[str]:
    """Return the command line of `fit` in a new process of this Python, with `--json` if this process has it."""
    return [sys.executable, "-m", "lit_rlvr", "fit", *(["--json"] if wants_json() else [])]
