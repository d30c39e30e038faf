"""The reward of SQL, whose result worker processes compare with the reference query's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lit_rlvr.errors import UserError, check_within
from lit_rlvr.rewards.base import CheckedReward, verdict
from lit_rlvr.rewards.sql_query import QueryFailed, QueryLimits, QueryResult, SQLRow, run_query
from lit_rlvr.types import Pair, RewardResult, Sample
from lit_rlvr.workers.pool import shared_pool
from lit_rlvr.workers.process import Outcome

if TYPE_CHECKING:
    from lit_rlvr.types import Status


SQL_CHECK = "lit_rlvr.rewards.sql:check_sql"


class SQLExecution(CheckedReward):
    """A reward of 1 for SQL with the result of the reference query `sample.answer`, else 0; it reports `correct`.

    Both run, read-only, on the SQLite files `sample.row["databases"]`, which `TextToSQL` provides.
    `check_sql` below defines which text is the SQL and when results are equal. Status "parse_fail" means no
    SQL, or SQL that SQLite refuses, and "timeout" that it hit a limit: both are wrong. A reference that fails or a
    database that cannot be read gives status "error".

    Args:
        comparison: the rule for equal results: `bird` (sets of rows) or `spider` (multisets up to the order of columns;
            lists if the reference has an ORDER BY).
        max_instructions: limit on one query in instructions of SQLite's virtual machine, which runs 20 to 300 million a
            second; unlike seconds, they are the same in every run.
        max_rows: most rows in a query's result.
        cpu_seconds: CPU time of one check, for work that instructions do not count.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

    def __init__(
        self,
        comparison: Literal["bird", "spider"] = "bird",
        max_instructions: int = 200_000_000,
        max_rows: int = 100_000,
        cpu_seconds: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_within("[1, inf)", "rewards.SQLExecution", max_instructions=max_instructions, max_rows=max_rows)
        self.comparison = comparison
        self.limits = QueryLimits(max_instructions, max_rows)
        self.cpu_seconds = cpu_seconds

    def gold_completion(self, sample: Sample) -> str:
        return f"```sql\n{sample.answer}\n```"

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        outcomes = self._run([(completion.text, sample) for completion, sample in pairs])
        killed = [k for k, outcome in enumerate(outcomes) if outcome.status == "timeout"]
        references = self._run([(None, pairs[k][1]) for k in killed])  # the reference may be the cause
        for k, outcome in zip(killed, references, strict=True):
            if outcome.status == "timeout":
                outcomes[k] = Outcome(None, "error", f"the reference query: {outcome.detail}")
        return [verdict(outcome) for outcome in outcomes]

    def _run(self, checks: list[tuple[str | None, Sample]]) -> list[Outcome]:
        arguments = [(text, s.answer, _databases(s), self.comparison, self.limits) for text, s in checks]
        wall = 20 * self.cpu_seconds  # SQLite never waits: this is for an overloaded machine
        return shared_pool().run(SQL_CHECK, arguments, cpu_seconds=self.cpu_seconds, wall_seconds=wall)


def _databases(sample: Sample) -> tuple[str, ...]:
    paths = sample.row.get("databases")
    if not paths:
        raise UserError(
            f"{sample.source or sample.id}: no `databases` in its row; SQLExecution needs the data of TextToSQL, or "
            "rows whose `databases` list their SQLite files"
        )
    return tuple(map(str, paths))


Comparison = Literal["bird", "spider"]

CACHE_BYTES = 128 << 20
"""Size of the reference results that a worker caches."""

_FENCE = re.compile(r"```(?:(?:sqlite|sql)\b)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_START = r"SELECT|WITH\s+(?:RECURSIVE\s+)?\S+\s*(?:\([^)]*\)\s*)?AS"  # not every line that begins with "With"
_BARE = re.compile(rf"^[ \t]*((?:{_START})\b.*?)(?:\n[ \t]*\n|\Z)", re.DOTALL | re.IGNORECASE | re.MULTILINE)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL)
_INNERMOST = re.compile(r"\([^()]*\)")

_references: dict[tuple[str, str, QueryLimits], QueryResult | QueryFailed] = {}


def check_sql(
    text: str | None, reference: str, databases: tuple[str, ...], comparison: Comparison, limits: QueryLimits
) -> tuple[bool, Status, str]:
    """Compare the result of the SQL in `text` with the reference's on every database.

    "bird": the sets of rows are equal; neither order nor duplicates count (Li et al. 2023). "spider": after some
    permutation of the columns, the rows are equal as multisets, or as lists if the reference has an ORDER BY outside
    parentheses (Zhong et al. 2020).

    Args:
        text: a completion; None = only check whether the reference runs.
        databases: SQLite files, at least one.

    Returns:
        (correct, status, the SQL or what went wrong). A failure of the reference has status "error".
    """
    sql = reference if text is None else extract_sql(text)
    if not sql:
        return False, "parse_fail", "no SQL"
    for path in databases:
        wanted = _reference_result(path, reference, limits)
        if isinstance(wanted, QueryFailed):
            return False, "error", f"the reference query failed ({wanted.reason}): {reference}"
        try:
            found = wanted if text is None else run_query(path, sql, limits)
        except QueryFailed as failure:
            return False, failure.status, f"{failure.reason}: {sql}"
        if not same_result(wanted.rows, found.rows, comparison, is_ordered(reference)):
            return False, "ok", sql
    return True, "ok", sql


def extract_sql(text: str) -> str:
    """Return the SQL of a completion, "" if there is none.

    It is the whole content of the last non-empty fenced block after the last `</think>`. Without a block it is the text
    from the last line that starts with SELECT or WITH ... AS, up to a blank line or the end.
    """
    text = text.rpartition("</think>")[2]
    blocks = [block.strip() for block in (_FENCE if "```" in text else _BARE).findall(text)]
    return next((block for block in reversed(blocks) if block), "")


def is_ordered(sql: str) -> bool:
    """Return True if a query has an ORDER BY outside parentheses (subqueries, windows), strings and comments."""
    sql = _QUOTED.sub(" ", sql)
    while "(" in sql and (outer := _INNERMOST.sub(" ", sql)) != sql:
        sql = outer
    return re.search(r"\border\s+by\b", sql, re.IGNORECASE) is not None


def same_result(wanted: list[SQLRow], found: list[SQLRow], comparison: Comparison, ordered: bool) -> bool:
    """Return True if two results are equal under a benchmark's rule."""
    if comparison == "bird":
        return set(wanted) == set(found)
    if not wanted or not found:
        return not wanted and not found
    if len(wanted) != len(found) or len(wanted[0]) != len(found[0]):
        return False
    nothing: list[SQLRow] = [()] * len(wanted)
    return _match(list(zip(*wanted, strict=True)), list(zip(*found, strict=True)), nothing, nothing, ordered)


def _match(wanted: list[SQLRow], found: list[SQLRow], left: list[SQLRow], right: list[SQLRow], ordered: bool) -> bool:
    """Return True if some order of the found columns makes the rows equal the wanted ones.

    Args:
        wanted, found: columns still to match. left, right: the rows of the columns matched so far.
    """
    if not wanted:
        return True
    left = [(*row, value) for row, value in zip(left, wanted[0], strict=True)]
    for column in dict.fromkeys(found):  # equal columns need one try
        rows = [(*row, value) for row, value in zip(right, column, strict=True)]
        if left == rows if ordered else Counter(left) == Counter(rows):
            rest = list(found)
            rest.remove(column)
            if _match(wanted[1:], rest, left, rows, ordered):
                return True
    return False


def _reference_result(path: str, reference: str, limits: QueryLimits) -> QueryResult | QueryFailed:
    """Return the result or the failure of the reference query. It runs once, as long as the cache has room."""
    key = (path, reference, limits)
    if key not in _references:
        if sum(result.size for result in _references.values() if isinstance(result, QueryResult)) > CACHE_BYTES:
            _references.clear()
        try:
            _references[key] = run_query(path, reference, limits)
        except QueryFailed as failure:
            _references[key] = failure
    return _references[key]
