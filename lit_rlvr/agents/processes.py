"""The processes of agents: one for each episode."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lit_rlvr.agents.requests import RequestError
from lit_rlvr.agents.session import Session, read_reward
from lit_rlvr.environments.agent import Agent

OUTPUT_BYTES = 1 << 16
"""How much of the end of a program's output is read."""
GRACE_SECONDS = 5.0
"""Seconds that a program has to exit after it has ended its episode."""
POLL_SECONDS = 0.01
LAUNCHER = Path(__file__).with_name("launcher.py")


def play_episode(
    agent: Agent, session: Session, task: dict[str, Any], url: str, is_stopped: Callable[[], bool]
) -> None:
    """Run an agent's program for one episode, and note in the session how it ended.

    Args:
        agent: the settings.
        session: the episode.
        task: what the program is to do, as JSON.
        url: the endpoint's, without a path.
        is_stopped: returns True once the run wants no more episodes.
    """
    with tempfile.TemporaryDirectory(prefix="lit-rlvr-agent-") as folder:
        task_file = Path(folder, "task.json")
        task_file.write_text(json.dumps(task, default=str) + "\n")
        with (
            task_file.open("rb") as stdin, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err
        ):  # fmt: skip
            limits = [str(os.getpid()), str(int(agent.limits.cpu_seconds)), str(agent.limits.memory_mb)]
            process = subprocess.Popen(
                [sys.executable, "-I", str(LAUNCHER), *limits, *agent.command],
                stdin=stdin, stdout=out, stderr=err, start_new_session=True,
                env=agent.variables(url, session.key, str(task_file)),
            )  # fmt: skip
            try:
                is_late = wait_for_end(process, session, agent.limits.wall_seconds, is_stopped)
            finally:
                end(process)
            note_end(session, process.returncode, is_late, agent.limits.wall_seconds, tail(out), tail(err))


def wait_for_end(
    process: subprocess.Popen[bytes], session: Session, seconds: float, is_stopped: Callable[[], bool]
) -> bool:
    """Wait until a program or its episode ends; return True if neither did in time."""
    deadline = time.monotonic() + seconds
    grace: float | None = None
    pause = POLL_SECONDS / 10
    while process.poll() is None:
        now = time.monotonic()
        if session.is_over and grace is None:
            grace = now + GRACE_SECONDS
        if is_stopped() or (grace is not None and now > grace):
            return False
        if now > deadline:
            return grace is None
        time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS)
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program and everything that it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)  # the launcher kills its children
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tail(file: IO[bytes]) -> str:
    """Return the end of a program's output."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), OUTPUT_BYTES, max(0, size - OUTPUT_BYTES)).decode(errors="replace")


def note_end(session: Session, status: int, is_late: bool, seconds: float, out: str, err: str) -> None:
    """Note how a program ended: the reward in the last line of its output, or why it failed.

    Args:
        session: the episode.
        status: the exit status.
        is_late: it was ended because its time was over.
        seconds: the time that it had.
        out, err: the ends of its output.
    """
    was_over = session.is_over
    session.is_over = True
    detail = ""
    if session.reward is None and not was_over:
        lines = out.strip().splitlines()
        last = lines[-1].strip() if lines else ""
        if last.startswith("{") and '"reward"' in last:
            try:
                session.reward = read_reward(json.loads(last))
            except (RequestError, ValueError) as error:
                detail = f"wrote a reward that cannot be read: {error}"
    if is_late:
        session.failure = "timeout"
        session.failure_detail = f"did not end within {seconds:g} s (Agent.timeout)"
    elif not session.trained:
        session.failure = "silent"
        session.failure_detail = f"got no completion; exit status {status}: {last_line(err)}"
    elif detail or (status != 0 and not was_over and session.reward is None):
        session.failure = "crashed"
        session.failure_detail = detail or f"ended with exit status {status}: {last_line(err)}"


def last_line(text: str) -> str:
    """Return the last line of a text that is not blank."""
    lines = text.strip().splitlines()
    if lines:
        return " ".join(lines[-1].split())[:300]
    return "it wrote no error"
