"""The reward of SQL, whose result worker processes compare with the reference query's."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.log import log
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import CheckedReward, verdict
from lit_rlvr.rewards.fences import Block, fenced_blocks
from lit_rlvr.rewards.sql_query import QueryLimits, QueryResult, SQLRow, run_query
from lit_rlvr.speech.thoughts import without_thoughts
from lit_rlvr.types import ExecutionFailed, Pair, RewardResult, Sample, Status
from lit_rlvr.workers.pool import shared_pool
from lit_rlvr.workers.process import Outcome


class SQLExecution(CheckedReward):
    """A reward of 1 for SQL with the result of the reference query `sample.answer`, else 0; it reports `correct`.

    Both run, read-only, on the SQLite files `sample.row["databases"]`, which `TextToSQL` provides.
    `check_sql` below defines which text is the SQL and when results are equal. Status "parse_fail" means no
    SQL, or SQL that SQLite refuses, and "timeout" that it hit a limit: both are wrong. A reference that fails or a
    database that cannot be read gives status "error".

    Args:
        comparison: the rule for equal results: `bird` (sets of rows) or `spider` (multisets up to the order of columns;
            lists if the reference has an ORDER BY).
        float_tolerance: the largest error of a number with a fraction, absolute or relative: a sum depends on the order
            of its terms.
        allow_empty: whether a reference without rows judges, by which any query without rows is right; a warning counts
            them. False: completions of such prompts are not judged.
        max_instructions: limit on one query in instructions of SQLite's virtual machine, which runs 20 to 300 million a
            second; unlike seconds, they are the same in every run.
        max_rows: most rows in a query's result.
        cpu_seconds: CPU time of one check, for work that instructions do not count.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

    def __init__(
        self,
        comparison: Literal["bird", "spider"] = "bird",
        float_tolerance: float = 1e-12,
        allow_empty: bool = True,
        max_instructions: int = 200_000_000,
        max_rows: int = 100_000,
        cpu_seconds: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_within("[1, inf)", "rewards.SQLExecution", max_instructions=max_instructions, max_rows=max_rows)
        check_within("[0, 1)", "rewards.SQLExecution", float_tolerance=float_tolerance)
        self.comparison = comparison
        self.float_tolerance = float_tolerance
        self.allow_empty = allow_empty
        self._has_warned = False
        self.limits = QueryLimits(max_instructions, max_rows)
        self.cpu_seconds = cpu_seconds

    def gold_completion(self, sample: Sample) -> str:
        return f"```sql\n{sample.answer}\n```"

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        outcomes = self._run([(completion.full_text, sample) for completion, sample in pairs])
        killed = []
        for k, outcome in enumerate(outcomes):
            if outcome.status == "timeout":
                killed.append(k)
        references = self._run([(None, pairs[k][1]) for k in killed])  # the reference may be the cause
        for k, outcome in zip(killed, references, strict=True):
            if outcome.status == "timeout":
                outcomes[k] = Outcome(None, "error", f"the reference query: {outcome.detail}")
        results = [verdict(outcome) for outcome in outcomes]
        empty = []
        for k, result in enumerate(results):
            if result.detail.startswith(NO_ROWS):
                empty.append(k)
        if empty and not self._has_warned:
            self._has_warned = True
            ids = set()
            for k in empty:
                ids.add(pairs[k][1].id)
            first_sample = pairs[empty[0]][1]
            log.warning(
                "reward %s: the references of %d of %d prompts have no rows (first, %s), so %s",
                self.name,
                len(ids),
                len({sample.id for _, sample in pairs}),
                first_sample.source or first_sample.id,
                "any query without rows is right there; correct them, or set allow_empty: false"
                if self.allow_empty
                else "their completions are not judged",
            )
        for k in () if self.allow_empty else empty:
            results[k] = replace(results[k], value=0.0, correct=None, status="unjudged")
        return results

    def _run(self, checks: list[tuple[str | None, Sample]]) -> list[Outcome]:
        arguments = []
        for text, s in checks:
            arguments.append(
                (text, s.answer, databases_of(s, "SQLExecution"), self.comparison, self.limits, self.float_tolerance)
            )
        wall = 20 * self.cpu_seconds  # SQLite never waits: this is for an overloaded machine
        return shared_pool().run(
            "lit_rlvr.rewards.sql:check_sql", arguments, cpu_seconds=self.cpu_seconds, wall_seconds=wall
        )


def databases_of(sample: Sample, reader: str) -> tuple[str, ...]:
    """Return the SQLite files of a sample.

    Args:
        sample: the sample, whose row names the files.
        reader: the class that needs them, for the error.

    Raises:
        UserError: there are none.
    """
    paths = sample.row.get("databases")
    if not paths:
        raise UserError(
            f"{sample.source or sample.id}: no `databases` in its row; {reader} needs the data of TextToSQL, or "
            "rows whose `databases` list their SQLite files"
        )
    return tuple(map(str, paths))


Comparison = Literal["bird", "spider"]

NO_ROWS = "the reference has no rows: "
"""Beginning of the detail where the reference has no rows in any database."""

CACHE_BYTES = 128 << 20
"""Size of the reference results that a worker caches."""

_LANGUAGES = {
    "sql",
    "sqlite",
    "sqlite3",
    "postgresql",
    "postgres",
    "mysql",
    "mariadb",
    "plsql",
    "psql",
    "tsql",
    "duckdb",
}
_INLINE = re.compile(r"```(?:(?:sqlite|sql)\b)?([^`\n]*)```", re.IGNORECASE)
_START = r"(?:SELECT|WITH\s+(?:RECURSIVE\s+)?\S+\s*(?:\([^)]*\)\s*)?AS)\b"  # not every text that begins with "With"
_QUERY = re.compile(rf"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*+(?:{_START}|VALUES\b)", re.DOTALL | re.IGNORECASE)
_BARE = re.compile(
    rf"^[ \t>]*(?:[^\n:=]{{0,80}}\b(?:sql|query|answer|statement)\b[^\n:=]{{0,20}}[:=][ \t]*)?([`\"*]*)({_START}.*)",
    re.DOTALL | re.I | re.M,
)
_IN_SENTENCE = re.compile(rf"`({_START}[^`\n]*)`", re.IGNORECASE)
"""A query as code within a sentence."""
_END = re.compile(r"(?:;(?:\s|--[^\n]*+|/\*.*?\*/)*+){2,}\Z", re.DOTALL)
"""Several semicolons at the end of a query, of which SQLite takes one, with comments behind them."""
_TAGS = re.compile(r"</?(?:answer|sql|query|final_answer)>", re.IGNORECASE)
_CLAUSES = "SELECT|FROM|WHERE|GROUP|HAVING|ORDER|LIMIT|UNION|INTERSECT|EXCEPT|JOIN|INNER|LEFT|CROSS|ON|AND|OR"
_GOES_ON = re.compile(r"(?:[,(]|\b(?:UNION|ALL|INTERSECT|EXCEPT|AND|OR|FROM|WHERE|BY|SELECT|ON))\s*\Z", re.IGNORECASE)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL)
_INNERMOST = re.compile(r"\([^()]*\)")

_references: dict[tuple[str, str, QueryLimits], QueryResult | ExecutionFailed] = {}


def check_sql(
    text: str | None,
    reference: str,
    databases: tuple[str, ...],
    comparison: Comparison,
    limits: QueryLimits,
    float_tolerance: float = 1e-12,
) -> tuple[bool, Status, str]:
    """Compare the result of the SQL in `text` with the reference's on every database.

    "bird": the sets of rows are equal; neither order nor duplicates count (Li et al. 2023). "spider": after some
    permutation of the columns, the rows are equal as multisets, or as lists if the reference has an ORDER BY outside
    parentheses (Zhong et al. 2020). 1 and 1.0 are equal, 1 and '1' are not.

    Args:
        text: a completion; None = only check whether the reference runs.
        reference: the reference query.
        databases: SQLite files, at least one.
        comparison: the benchmark's rule, "bird" or "spider".
        limits: limits on each query.
        float_tolerance: the largest error of a number with a fraction, absolute or relative.

    Returns:
        (correct, status, the SQL or what went wrong). A failure of the reference has status "error".
    """
    if text is None:
        sql = reference
    else:
        sql = _END.sub("", extract_sql(text))
    if not sql:
        return False, "parse_fail", "no SQL"
    try:
        references = []
        for path in databases:
            references.append(_reference_result(path, reference, limits))
    except ExecutionFailed as failure:
        return False, "error", f"the reference query failed ({failure.reason}): {reference}"
    if any(result.rows for result in references):
        detail = sql
    else:
        detail = NO_ROWS + sql
    for path, wanted in zip(databases, references, strict=True):
        try:
            if text is None:
                query_result = wanted
            else:
                query_result = run_query(path, sql, limits)
        except ExecutionFailed as failure:
            return False, failure.status, f"{failure.reason}: {sql}"
        rows = with_equal_numbers(wanted.rows, query_result.rows, float_tolerance)
        if not same_result(*rows, comparison, is_ordered(reference)):
            return False, "ok", detail
    return True, "ok", detail


def extract_sql(text: str) -> str:
    """Return the SQL of a completion, "" if there is none.

    It is the content of the last fenced block behind the thoughts that begins like a query, else of the last block.
    Blocks with the tag of another language, such as results, do not count. Without a block it is the last text that
    begins with SELECT or WITH ... AS at the start of a line, up to a semicolon at the end of a line, a blank line that
    the query does not continue behind, or the end.
    """
    text = without_thoughts(text)
    if "```" not in text and "~~~" not in text:
        return next(reversed(_bare_queries(text)), "")
    blocks = [_content(block) for block in fenced_blocks(text)] + _INLINE.findall(text)
    contents = []
    for content in blocks:
        if content.strip():
            contents.append(content.strip())
    return next(filter(_QUERY.match, reversed(contents)), contents[-1] if contents else "")


def _content(block: Block) -> str:
    """Return the SQL of a block, "" if its tag names another language."""
    known = block.language in _LANGUAGES
    begun = block.tag.strip()[len(block.language) if known else 0 :]
    if _QUERY.match(begun):  # on the line of the fence
        return f"{begun}\n{block.content}"
    if known or not block.language:
        return block.content
    return ""


BARE_CHARACTERS = 4000
"""Length from which a query without a fence does not continue behind a blank line."""


def _bare_queries(text: str) -> list[str]:
    """Return the queries of a text without fences."""
    queries: list[str] = []
    is_open = False  # whether the query may go on behind a blank line
    for paragraph in re.split(r"\n[ \t]*\n", _TAGS.sub("\n\n", text)):
        if is_open and _continues(queries[-1], paragraph):
            queries[-1] += f"\n\n{paragraph}"
        elif match := _BARE.search(paragraph):
            if match[1] and match[1][::-1] in match[2]:
                queries.append(match[2].rpartition(match[1][::-1])[0])
            else:
                queries.append(match[2])
        elif inline := _IN_SENTENCE.findall(paragraph):
            queries.append(inline[-1])
        else:
            is_open = False
            continue
        statement, ends, _ = queries[-1].partition(";\n")
        queries[-1] = (statement + ends).strip()
        is_open = not queries[-1].endswith(";") and len(queries[-1]) < BARE_CHARACTERS
    return queries


def _continues(query: str, paragraph: str) -> bool:
    """Return True if a paragraph continues the query before it."""
    outer = _without_parentheses(query)
    clauses = _CLAUSES if query[0].isupper() else _CLAUSES.lower()  # "From this query you get it" is no clause
    begun = re.match(rf"\s*(?:\)|,|(?:{clauses})\b)", paragraph)
    is_new = re.match(rf"\s*{_START}", paragraph, re.IGNORECASE)
    if "(" in outer or _GOES_ON.search(query):
        return True
    if is_new:  # of a query WITH ... AS (...), the part that selects
        return re.match(r"WITH\b", query, re.IGNORECASE) is not None and not re.search(
            r"\bSELECT\b", outer, re.IGNORECASE
        )
    return begun is not None


def _without_parentheses(sql: str) -> str:
    """Return a query without strings, comments and what is in parentheses."""
    sql = _QUOTED.sub(" ", sql)
    while "(" in sql and (outer := _INNERMOST.sub(" ", sql)) != sql:
        sql = outer
    return sql


def is_ordered(sql: str) -> bool:
    """Return True if a query has an ORDER BY outside parentheses (subqueries, windows), strings and comments."""
    return re.search(r"\border\s+by\b", _without_parentheses(sql), re.IGNORECASE) is not None


def with_equal_numbers(
    wanted: list[SQLRow], rows_found: list[SQLRow], tolerance: float
) -> tuple[list[SQLRow], list[SQLRow]]:
    """Return two results with one number in place of all that are equal up to a tolerance.

    Args:
        wanted: rows of the reference's result.
        rows_found: rows of the completion's result.
        tolerance: the largest error of a number with a fraction, absolute or relative; whole numbers are exact.
    """
    values = set()
    for rows in (wanted, rows_found):
        for row in rows:
            for value in row:
                if isinstance(value, int | float):
                    values.add(value)
    replacements: dict[Any, Any] = {}
    for lower, value in pairwise(sorted(values)):
        is_whole = float(lower).is_integer() and float(value).is_integer()
        if not is_whole and math.isclose(lower, value, rel_tol=tolerance, abs_tol=tolerance):
            replacements[value] = replacements.get(lower, lower)
    if not replacements:
        return wanted, rows_found

    def replaced(rows: list[SQLRow]) -> list[SQLRow]:
        equal = []
        for row in rows:
            equal.append(tuple(replacements.get(value, value) for value in row))
        return equal

    return replaced(wanted), replaced(rows_found)


def same_result(wanted: list[SQLRow], result: list[SQLRow], comparison: Comparison, ordered: bool) -> bool:
    """Return True if two results are equal under a benchmark's rule.

    Args:
        wanted: rows of the reference's result.
        result: rows of the completion's result.
        comparison: the benchmark's rule, "bird" or "spider".
        ordered: whether the order of the rows counts.
    """
    if comparison == "bird":
        return set(wanted) == set(result)
    if not wanted or not result:
        return not wanted and not result
    if len(wanted) != len(result) or len(wanted[0]) != len(result[0]):
        return False
    no_rows: list[SQLRow] = [()] * len(wanted)
    return _match(list(zip(*wanted, strict=True)), list(zip(*result, strict=True)), no_rows, no_rows, ordered)


def _match(wanted: list[SQLRow], columns: list[SQLRow], left: list[SQLRow], right: list[SQLRow], ordered: bool) -> bool:
    """Return True if some order of `columns` makes the rows equal the wanted ones.

    Args:
        wanted: columns of the reference's result that are still to match.
        columns: columns of the completion's result that are still to match.
        left, right: the rows of the columns matched so far.
        ordered: whether the order of the rows counts.
    """
    if not wanted:
        return True
    left = [(*row, value) for row, value in zip(left, wanted[0], strict=True)]
    for column in dict.fromkeys(columns):  # equal columns need one try
        rows = []
        for row, value in zip(right, column, strict=True):
            rows.append((*row, value))
        if left == rows if ordered else Counter(left) == Counter(rows):
            rest = list(columns)
            rest.remove(column)
            if _match(wanted[1:], rest, left, rows, ordered):
                return True
    return False


def _reference_result(path: str, reference: str, limits: QueryLimits) -> QueryResult:
    """Return the result of the reference query. It runs once, even if it fails, as long as the cache has room.

    Raises:
        ExecutionFailed: it fails.
    """
    key = (path, reference, limits)
    if key not in _references:
        if sum(result.size for result in _references.values() if isinstance(result, QueryResult)) > CACHE_BYTES:
            _references.clear()
        try:
            _references[key] = run_query(path, reference, limits)
        except ExecutionFailed as failure:
            _references[key] = failure
    result = _references[key]
    if isinstance(result, ExecutionFailed):
        raise result.with_traceback(None)
    return result
