"""`gpu.py --part all`: the parts that need no vLLM, each in a process of its own with a limit, results in one file.

A process imports everything while the part before it measures, and then waits for its turn. The file is replaced after
each part, so that a kill loses at most one part; a part that fails leaves the end of what it printed, and the others go
on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common import say

FEW = ["--prompts", "16", "--steps", "2"]
SCHEDULE: list[tuple[str, list[str], int]] = [
    ("step", FEW, 150),
    ("profile", [], 60),
    ("compile", FEW, 120),
    ("iteration", [*FEW, "--max-tokens", "256"], 110),
    ("score", [], 60),
    ("attention", [], 60),
    ("offload", [*FEW, "--max-tokens", "128"], 180),
    ("fit", [], 150),
    ("lora", FEW, 60),
    ("deterministic", ["--prompts", "8"], 60),
    ("memory", ["--prompts", "16"], 90),
    ("step", [*FEW, "--shape", "vision"], 150),
    ("step", [*FEW, "--ours", "compute.gradient_checkpointing=false"], 150),
    ("engine", ["--prompts", "16"], 90),
]
"""Part, its arguments and the most seconds it may take; what teaches most comes first."""
LEAST_SECONDS = 15.0
"""A part is left out when less time is left."""
KEPT_LINES = 60
"""Lines that are kept of the output of a part that fails."""
PACKAGES = ("torch", "triton", "transformers", "lightning", "peft", "liger-kernel", "jsonargparse")


class Part:
    """A part's process, which waits for its turn.

    Args:
        command: of Python.
    """

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def run(self, seconds: float) -> dict[str, Any]:
        """Let it measure; print what it prints, and return its result or the end of its output."""
        assert self.process.stdin is not None and self.process.stdout is not None
        started, lines, result = time.perf_counter(), deque[str](maxlen=KEPT_LINES), None
        timer = threading.Timer(seconds, self.kill)
        timer.start()
        try:
            self.process.stdin.close()  # its turn
            for line in self.process.stdout:
                say(line.rstrip())
                lines.append(line.rstrip())
                if line.startswith('{"benchmark"'):
                    result = json.loads(line)
            status = self.process.wait()
        finally:
            timer.cancel()
            self.kill()
        took = time.perf_counter() - started
        found: dict[str, Any] = {"seconds": round(took, 1), "status": status, "result": result}
        if status:
            found |= {"error": "killed at its limit" if took >= seconds else "failed", "output": [*lines]}
        return found

    def kill(self) -> None:
        """End it and the processes that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()


def run_all(script: str, shared: list[str], minutes: float, output: Path) -> int:
    """Run the schedule for at most `minutes`; return how many parts failed.

    Args:
        script: gpu.py. shared: arguments for every part. output: the file of results.
    """
    end, failed = time.perf_counter() + 60 * minutes, 0
    found: dict[str, Any] = {"machine": describe_machine(), "arguments": shared, "parts": []}
    say(json.dumps(found["machine"]))
    commands = [[script, "--part", part, "--wait", *shared, *more] for part, more, _ in SCHEDULE]
    waiting = Part(commands[0])
    for n, (part, more, limit) in enumerate(SCHEDULE):
        row: dict[str, Any] = {"part": part, "arguments": more}
        left = end - time.perf_counter()
        if left < LEAST_SECONDS:
            row["skipped"] = f"{max(left, 0):.0f} s were left"
        else:
            current, has_next = waiting, n + 1 < len(SCHEDULE)
            waiting = Part(commands[n + 1]) if has_next else current
            say(f"---- {part} {' '.join(more)} (at most {min(limit, left):.0f} s)")
            row |= current.run(min(limit, left))
            failed += row["status"] != 0
            say(f"---- {part}: {row.get('error', 'done')} after {row['seconds']} s")
        found["parts"].append(row)
        scratch = output.with_suffix(".tmp")
        scratch.write_text(json.dumps(found, indent=1))
        scratch.replace(output)
    waiting.kill()
    return failed


def describe_machine() -> dict[str, Any]:
    """Return the GPU and the versions, without using the GPU."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "cores": os.cpu_count()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found["gpu"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        found["gpu"] = str(error)
    return found
