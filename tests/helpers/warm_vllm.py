"""Loaded by the server from which vLLM's servers are forked. The processes that they start are forks, too."""
# ruff: noqa: F401

import multiprocessing
import os
import sys
from typing import Any, NoReturn

import vllm.entrypoints.cli.serve
import vllm.entrypoints.launchers.api_server.entry
import vllm.v1.executor.multiproc_executor
import vllm.v1.worker.cpu_worker
import warm

from lit_rlvr.engines import server_process


def become(program: str, line: list[str], environment: dict[str, str] | None = None) -> NoReturn:
    """Serve in this process, where `lit-rlvr serve` would start a new Python."""
    assert line[1:3] == ["-m", server_process.__name__], line
    os.environ.update(environment or {})
    sys.argv[1:] = line[3:]
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork
    server_process.main()
    sys.exit()


os.execve = os.execv = become
