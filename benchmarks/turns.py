"""Two training processes that alternate: each waits at the end of its step until its next turn.

A waiting process blocks in a read, so it takes no core from the other one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

VARIABLE = "BENCHMARK_TURNS"  # tells a contestant its two pipes


class Turns:
    """A contestant's end: call `start` before its first step, and `begin` and `end` around every step."""

    def __init__(self) -> None:
        orders, reports = map(int, os.environ[VARIABLE].split(","))
        os.set_inheritable(orders, False)
        os.set_inheritable(reports, False)
        self._orders, self._reports = os.fdopen(orders, "r"), os.fdopen(reports, "w")
        self._began: float | None = None

    def begin(self) -> None:
        """Wait for the first turn (`end` waits for the later ones), and start the clock."""
        if self._began is None:
            self._exchange({})
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        assert self._began is not None, "begin() comes first"
        return time.perf_counter() - self._began

    def end(self, report: dict[str, Any]) -> bool:
        """Report the step and wait for the next turn; return False if there is none."""
        return self._exchange(report) == "go"

    def _exchange(self, report: dict[str, Any]) -> str:
        self._reports.write(json.dumps(report) + "\n")
        self._reports.flush()
        order = self._orders.readline().strip()
        if not order:
            raise SystemExit("the benchmark that started this contestant is gone")
        return order


class Player:
    """The benchmark's end: a contestant's process.

    Args:
        name: for messages.
        command: a Python script and its arguments.
        environment: further environment variables.
    """

    def __init__(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        their_orders, orders = os.pipe()
        reports, their_reports = os.pipe()
        self.name = name
        self._orders, self._reports = os.fdopen(orders, "w"), os.fdopen(reports, "r")
        self._process = subprocess.Popen(
            [sys.executable, *command],
            pass_fds=(their_orders, their_reports),
            env={**os.environ, **(environment or {}), VARIABLE: f"{their_orders},{their_reports}"},
            stdout=sys.stderr,
        )
        os.close(their_orders)
        os.close(their_reports)
        self.steps: list[dict[str, Any]] = []
        self._receive()  # it has loaded and stands before its first step

    def step(self) -> dict[str, Any]:
        """Let the contestant take one step; return its report."""
        self._send("go")
        self.steps.append(self._receive())
        return self.steps[-1]

    def stop(self) -> None:
        """Let the contestant end."""
        if self._process.poll() is None:
            self._send("stop")
            self._process.wait()

    def kill(self) -> None:
        """Kill the contestant's process; do nothing after `stop`."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _send(self, order: str) -> None:
        self._orders.write(order + "\n")
        self._orders.flush()

    def _receive(self) -> dict[str, Any]:
        line = self._reports.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self._process.wait()}; what it said stands above")
        return json.loads(line)
