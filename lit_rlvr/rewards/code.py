"""The reward of programs that pass tests, which run in a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import CheckedReward, verdict
from lit_rlvr.types import Pair, RewardResult, Sample
from lit_rlvr.workers.pool import shared_pool
from lit_rlvr.workers.sandbox import Limits, is_supported

CHECK = "lit_rlvr.rewards.code_check:check"
CHECK_SECONDS = 3600.0
"""Wall-clock and CPU seconds of one check; no check takes so long, because each test has its own limits."""
CHECK_MEMORY_MB = 4096
"""Memory for the tests of one problem; a program gets its own `memory_mb`."""


class CodeTests(CheckedReward):
    """A reward of 1 for a completion whose Python program passes all tests, else 0; it reports `correct`.

    `CodeProblems` provides the tests: `sample.row["tests"]` and, if a function is called, `sample.row["function"]`.
    `lit_rlvr.rewards.code_check` defines which text is the program and when a test passes;
    `lit_rlvr.workers.sandbox` defines what a program cannot do. Status "parse_fail" means no code block, and "timeout"
    means that the program hit a limit: both are wrong, and so is an exception or a crash (status "ok"). `detail` names
    the first failed test. Unreadable tests, or a sandbox that does not start, give status "error".

    Args:
        prefill: the data's `prefill`, if set: the text before every completion, judged together with it.
        cpu_seconds: CPU time of one test, a whole number; a program that sleeps is stopped after ten times that.
        memory_mb: address space of a program in MiB, including about 30 for Python.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.

    Raises:
        UserError: a limit is not positive, or the sandbox does not support this machine.
    """

    def __init__(
        self,
        prefill: str = "",
        cpu_seconds: int = 6,
        memory_mb: int = 2048,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for option, value in (("cpu_seconds", cpu_seconds), ("memory_mb", memory_mb)):
            if value < 1:
                raise UserError(f"rewards.CodeTests.{option} must be at least 1, got {value}")
        if not is_supported():
            raise UserError("rewards.CodeTests runs untrusted programs only on Linux, on x86_64 or aarch64")
        self.prefill = prefill
        self.limits = Limits(cpu_seconds, memory_mb)

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        arguments = [(self.prefill + c.text, *_tests(sample), self.limits) for c, sample in pairs]
        outcomes = shared_pool().run(
            CHECK, arguments, cpu_seconds=CHECK_SECONDS, wall_seconds=CHECK_SECONDS, memory_mb=CHECK_MEMORY_MB
        )
        return [verdict(outcome) for outcome in outcomes]


def _tests(sample: Sample) -> tuple[tuple[str, ...], str]:
    cells = sample.row.get("tests")
    if not cells:
        raise UserError(
            f"{sample.source or sample.id}: no `tests` in its row; CodeTests needs the data of CodeProblems, or rows "
            "with a `tests` entry"
        )
    return tuple(cells), str(sample.row.get("function") or "")
