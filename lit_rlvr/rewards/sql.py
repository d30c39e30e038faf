"""The reward of SQL, whose result worker processes compare with the reference query's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import CheckedReward, verdict
from lit_rlvr.rewards.sql_query import Limits
from lit_rlvr.types import Pair, RewardResult, Sample
from lit_rlvr.workers.pool import shared_pool
from lit_rlvr.workers.process import Outcome

CHECK = "lit_rlvr.rewards.sql_check:check"


class SQLExecution(CheckedReward):
    """A reward of 1 for SQL with the result of the reference query `sample.answer`, else 0; it reports `correct`.

    Both run, read-only, on the SQLite files `sample.row["databases"]`, which `TextToSQL` provides.
    `lit_rlvr.rewards.sql_check` defines which text is the SQL and when results are equal. Status "parse_fail" means no
    SQL, or SQL that SQLite refuses, and "timeout" that it hit a limit: both are wrong. A reference that fails or a
    database that cannot be read gives status "error".

    Args:
        comparison: the rule for equal results: `bird` (sets of rows) or `spider` (multisets up to the order of columns;
            lists if the reference has an ORDER BY).
        prefill: the data's `prefill`, if set: the text before every completion, judged together with it.
        max_instructions: limit on one query in instructions of SQLite's virtual machine, which runs 20 to 300 million a
            second; unlike seconds, they are the same in every run.
        max_rows: most rows in a query's result.
        cpu_seconds: CPU time of one check, for work that instructions do not count.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

    def __init__(
        self,
        comparison: Literal["bird", "spider"] = "bird",
        prefill: str = "",
        max_instructions: int = 200_000_000,
        max_rows: int = 100_000,
        cpu_seconds: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for option, value in (("max_instructions", max_instructions), ("max_rows", max_rows)):
            if value < 1:
                raise UserError(f"rewards.SQLExecution.{option} must be at least 1, got {value}")
        self.comparison = comparison
        self.prefill = prefill
        self.limits = Limits(max_instructions, max_rows)
        self.cpu_seconds = cpu_seconds

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        outcomes = self._run([(self.prefill + completion.text, sample) for completion, sample in pairs])
        killed = [k for k, outcome in enumerate(outcomes) if outcome.status == "timeout"]
        references = self._run([(None, pairs[k][1]) for k in killed])  # the reference may be the cause
        for k, outcome in zip(killed, references, strict=True):
            if outcome.status == "timeout":
                outcomes[k] = Outcome(None, "error", f"the reference query: {outcome.detail}")
        return [verdict(outcome) for outcome in outcomes]

    def _run(self, checks: list[tuple[str | None, Sample]]) -> list[Outcome]:
        arguments = [(text, s.answer, _databases(s), self.comparison, self.limits) for text, s in checks]
        wall = 20 * self.cpu_seconds  # SQLite never waits: this is for an overloaded machine
        return shared_pool().run(CHECK, arguments, cpu_seconds=self.cpu_seconds, wall_seconds=wall)


def _databases(sample: Sample) -> tuple[str, ...]:
    paths = sample.row.get("databases")
    if not paths:
        raise UserError(
            f"{sample.source or sample.id}: no `databases` in its row; SQLExecution needs the data of TextToSQL, or "
            "rows whose `databases` list their SQLite files"
        )
    return tuple(map(str, paths))
