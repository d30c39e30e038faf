"""Python as a tool: the model runs a program in the sandbox and reads its output."""

from __future__ import annotations

from typing import Any

from lit_rlvr.environments.tools import Tools
from lit_rlvr.errors import UserError
from lit_rlvr.workers.process import Isolation
from lit_rlvr.workers.sandbox import Limits, ProgramFailed, is_supported, run


class Python(Tools):
    """A tool that runs programs in the sandbox of `CodeTests`: they can compute and print, and nothing else.

    Args:
        cpu_seconds: CPU time of one program, in whole seconds.
        memory_mb: address space of one program, in MiB.
        kwargs: `limits` and `offer` of every environment with tools.

    Raises:
        UserError: this machine has no sandbox.
    """

    def __init__(self, cpu_seconds: int = 2, memory_mb: int = 1024, **kwargs: Any) -> None:
        if not is_supported():
            raise UserError("rollout.environment: Python needs Linux on x86_64 or aarch64 for its sandbox")
        if cpu_seconds < 1 or memory_mb < 1:
            raise UserError(f"Python: cpu_seconds={cpu_seconds} and memory_mb={memory_mb} must be at least 1")
        wall = 10.0 * cpu_seconds + 20.0  # the sandbox ends a sleeping program earlier
        super().__init__(**{"limits": Isolation(wall_seconds=wall), **kwargs})
        self._program = Limits(cpu_seconds, memory_mb)

    def python(self, code: str) -> str:
        """Run a Python program and see what it prints.

        Args:
            code: The program; it must print its result.
        """
        try:
            return run(code, "", self._program) or "the program printed nothing"
        except ProgramFailed as failure:
            raise ValueError(failure.reason) from failure
