"""A vLLM server as users start it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from forked import VLLM, Forked
from tiny_runs import child_environment, is_free, port_for_later

KEY = "sk-not-for-anybody"


class Served:
    """`lit-rlvr serve` in processes of its own, which are gone at the end."""

    def __init__(self, folder: Path, log: Path, *options: str) -> None:
        self.folder, self.log, self.options, self.port = folder, log, options, port_for_later()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: Forked | None = None

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()

    def start(self) -> None:
        line = ["serve", "--model", str(self.folder), "--port", str(self.port), "--api-key", KEY]
        line += ["--max-model-len", "1024", "--kv-cache-memory-bytes", str(1 << 28), *self.options]
        with self.log.open("ab") as log:
            self.process = Forked(line, log, child_environment(), server=VLLM)

    def kill(self) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):  # it was killed before
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + 60
        while not is_free(self.port) and time.monotonic() < deadline:  # the engine's process ends later, and holds it
            time.sleep(0.05)
