"""Programs against their tests, run in a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import Pair
from lit_rlvr.rewards.checked import CheckedReward, verdict
from lit_rlvr.rewards.pool import shared_pool
from lit_rlvr.rewards.sandbox import Limits, is_supported
from lit_rlvr.types import RewardResult, Sample

CHECK = "lit_rlvr.rewards.code_check:check"
CHECK_SECONDS = 3600.0
"""Wall-clock time of one check, its own CPU time too: the tests have limits of their own, this one is never met."""
CHECK_MEMORY_MB = 4096
"""For the tests of one problem; a program gets its own `memory_mb`."""


class CodeTests(CheckedReward):
    """1 when the completion's Python program passes all tests, else 0; reports `correct`.

    `CodeProblems` fills in the tests: `sample.row["tests"]` and, where a function is called, `sample.row["function"]`.
    `lit_rlvr.rewards.code_check` says which text is the program and when a test is passed, and
    `lit_rlvr.rewards.sandbox` what a program cannot do. Status "parse_fail" means no block of code and "timeout" that
    the program ran into a limit: both are wrong, as an exception or a crash is (status "ok"). `detail` names the first
    test that failed. Tests that cannot be read, or a sandbox that does not start, are status "error".

    Args:
        prefill: the data's `prefill`, where it has one: the text before every completion, judged with it.
        truncated_is_wrong: a completion that was cut off at max_tokens is wrong without a check. False judges whatever
            text there is.
        cpu_seconds: CPU time of one test, a whole number; a program that sleeps is stopped after ten times that.
        memory_mb: address space of a program in MiB, Python's own ~30 included.
        kwargs: `weight`, `correct_from` and `name` of every reward.

    Raises:
        UserError: a limit is not positive, or the machine is none that the sandbox knows.
    """

    def __init__(
        self,
        prefill: str = "",
        truncated_is_wrong: bool = True,
        cpu_seconds: int = 6,
        memory_mb: int = 2048,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for option, value in (("cpu_seconds", cpu_seconds), ("memory_mb", memory_mb)):
            if value < 1:
                raise UserError(f"rewards.CodeTests.{option} must be at least 1, got {value}")
        if not is_supported():
            raise UserError("rewards.CodeTests runs untrusted programs on Linux alone, on x86_64 or aarch64")
        self.prefill = prefill
        self.truncated_is_wrong = truncated_is_wrong
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
            "that hold them there"
        )
    return tuple(cells), str(sample.row.get("function") or "")
