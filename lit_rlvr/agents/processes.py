"""The processes of agents: one for each episode, or workers that play one episode after another."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
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
SHORTEST_POLL, LONGEST_POLL = 0.001, 0.05
"""Seconds between two looks at a program where the system does not report that it exits; they grow with its time."""
IDLE_SECONDS = 0.25
"""Seconds between two looks at a program that neither writes nor exits."""
FILES_OF_PROGRAM = 7
"""Files that a program keeps open in the run: its pipes or outputs, what reports its exit, and its connections."""
LAUNCHER = Path(__file__).with_name("launcher.py")


class Program:
    """A process of an agent's program.

    Args:
        agent: the settings.
        variables: its environment variables.
        stdin, stdout: files, or `subprocess.PIPE`.
        cpu_seconds: CPU time of each process; 0 = no limit.
    """

    def __init__(self, agent: Agent, variables: Mapping[str, str], stdin: Any, stdout: Any, cpu_seconds: int) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        limits = [str(os.getpid()), str(cpu_seconds), str(agent.limits.memory_mb)]
        self.process = subprocess.Popen(
            [sys.executable, "-IS", str(LAUNCHER), *limits, *agent.program],
            stdin=stdin,
            stdout=stdout,
            stderr=self.errors,
            start_new_session=True,
            env=variables,
        )
        self.seconds = agent.limits.wall_seconds
        self._exit = open_exit(self.process.pid)

    def wait(
        self,
        session: Session,
        is_stopped: Callable[[], bool],
        is_done: Callable[[], bool],
        events: Callable[[], Mapping[int, int]] = dict,
    ) -> bool:
        """Wait until an episode or the program ends; return True if neither did in time.

        Args:
            session: the episode.
            is_stopped: returns True once the run wants no more episodes.
            is_done: returns True once the program has ended the episode.
            events: returns the pipes, each with the events of `select.poll` after which `is_done` is asked at once.
        """
        began = time.monotonic()
        deadline = began + self.seconds
        grace: float | None = None
        while not is_done() and self.process.poll() is None:
            now = time.monotonic()
            if session.is_over and grace is None:
                grace = now + GRACE_SECONDS
            if is_stopped() or (grace is not None and now > grace):
                return False
            if now > deadline:
                return grace is None
            seconds = min(IDLE_SECONDS, max(deadline - now, SHORTEST_POLL))
            if self._exit is None:
                seconds = min(max((now - began) / 20, SHORTEST_POLL), LONGEST_POLL)
            self._wait_for(events(), seconds)
        return False

    def _wait_for(self, events: Mapping[int, int], seconds: float) -> None:
        """Wait until the program exits or a pipe has one of its events, at most some seconds."""
        poll = select.poll()
        if self._exit is not None:
            poll.register(self._exit, select.POLLIN)
        for file, event in events.items():
            poll.register(file, event)
        poll.poll(1000 * seconds)

    def close(self) -> None:
        """End the process and everything that it started."""
        end(self.process)
        self.errors.close()
        if self._exit is not None:
            os.close(self._exit)
            self._exit = None


def open_exit(pid: int) -> int | None:
    """Return a file that can be read once a process has exited; None where the system has none."""
    with suppress(OSError, AttributeError):
        return os.pidfd_open(pid)
    return None


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
        with task_file.open("rb") as stdin, tempfile.TemporaryFile() as out:
            variables = agent.variables(url, session.key, str(task_file))
            program = Program(agent, variables, stdin, out, int(agent.limits.cpu_seconds))
            try:
                is_late = program.wait(session, is_stopped, lambda: False)
                end(program.process)
                note_end(session, program, program.process.returncode, is_late, tail(out))
            finally:
                program.close()


class Worker:
    """A process that plays one episode after another.

    Args:
        agent: the settings.
        url: the endpoint's, without a path.
    """

    def __init__(self, agent: Agent, url: str) -> None:
        self._url = url
        variables = agent.variables(url, "", "")
        self._program = Program(agent, variables, subprocess.PIPE, subprocess.PIPE, cpu_seconds=0)
        for pipe in (self._program.process.stdin, self._program.process.stdout):
            assert pipe is not None, "it is a pipe"
            os.set_blocking(pipe.fileno(), False)
        self._read = b""
        self._is_open = True  # whether it may write

    def play(self, session: Session, task: dict[str, Any], is_stopped: Callable[[], bool]) -> bool:
        """Play an episode, and note in the session how it ended; return whether the process can play another."""
        line = task | {"base_url": f"{self._url}/v1", "api_key": session.key}
        stdin, stdout = self._program.process.stdin, self._program.process.stdout
        assert stdin is not None and stdout is not None, "they are pipes"
        lines: list[str] = []
        unsent = json.dumps(line, default=str).encode() + b"\n"

        def is_done() -> bool:
            nonlocal unsent
            unsent = _write(stdin, unsent)
            new, self._is_open = _read(stdout)
            self._read += new
            *whole, self._read = self._read[-OUTPUT_BYTES:].split(b"\n")
            for text in whole:
                if text.lstrip().startswith(b"{"):
                    lines.append(text.decode(errors="replace"))
            return bool(lines)

        def events() -> dict[int, int]:
            awaited = {}
            if self._is_open:
                awaited[stdout.fileno()] = select.POLLIN
            if unsent:
                awaited[stdin.fileno()] = select.POLLOUT
            return awaited

        is_late = self._program.wait(session, is_stopped, is_done, events)
        is_usable = is_done() and not unsent and self._program.process.poll() is None
        status = 0
        if not is_usable:
            end(self._program.process)
            status = self._program.process.returncode or 1
        note_end(session, self._program, status, is_late, "\n".join(lines))
        return is_usable

    def close(self) -> None:
        """End the process and everything that it started."""
        self._program.close()


def _write(pipe: IO[bytes], data: bytes) -> bytes:
    """Write what a pipe takes now; return the rest, nothing of it if nobody reads the pipe any more."""
    try:
        while data:
            data = data[os.write(pipe.fileno(), data[:OUTPUT_BYTES]) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        pass
    return b""


def _read(pipe: IO[bytes]) -> tuple[bytes, bool]:
    """Return what stands in a pipe now, and whether more may come."""
    parts = []
    is_open = False
    try:
        while part := os.read(pipe.fileno(), OUTPUT_BYTES):
            parts.append(part)
    except BlockingIOError:
        is_open = True
    return b"".join(parts), is_open


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


def note_end(session: Session, program: Program, status: int, is_late: bool, out: str) -> None:
    """Note how an episode ended: the reward in the last line of its program's output, or why it failed.

    Args:
        session: the episode.
        program: the program.
        status: its exit status; 0 if it goes on.
        is_late: it was ended because its time was over.
        out: the end of its output.
    """
    said = last_line(tail(program.errors))
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
        session.failure_detail = f"did not end within {program.seconds:g} s (Agent.timeout)"
    elif not session.trained:
        session.failure = "silent"
        session.failure_detail = f"got no completion; exit status {status}: {said}"
    elif detail or (status != 0 and not was_over and session.reward is None):
        session.failure = "crashed"
        session.failure_detail = detail or f"ended with exit status {status}: {said}"


def last_line(text: str) -> str:
    """Return the last line of a text that is not blank."""
    lines = text.strip().splitlines()
    if lines:
        return " ".join(lines[-1].split())[:300]
    return "it wrote no error"
