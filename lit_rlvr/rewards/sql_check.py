"""The check of one completion's SQL: run it and the reference, in a reward worker."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Literal

from lit_rlvr.rewards.sql_query import Limits, QueryFailed, Result, Row, run_query

if TYPE_CHECKING:
    from lit_rlvr.types import Status

Comparison = Literal["bird", "spider"]

CACHE_BYTES = 128 << 20
"""Size of the reference results that a worker caches."""

_FENCE = re.compile(r"```(?:(?:sqlite|sql)\b)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_START = r"SELECT|WITH\s+(?:RECURSIVE\s+)?\S+\s*(?:\([^)]*\)\s*)?AS"  # not every line that begins with "With"
_BARE = re.compile(rf"^[ \t]*((?:{_START})\b.*?)(?:\n[ \t]*\n|\Z)", re.DOTALL | re.IGNORECASE | re.MULTILINE)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL)
_INNERMOST = re.compile(r"\([^()]*\)")

_references: dict[tuple[str, str, Limits], Result | QueryFailed] = {}


def check(
    text: str | None, reference: str, databases: tuple[str, ...], comparison: Comparison, limits: Limits
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
    sql = reference if text is None else extract(text)
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


def extract(text: str) -> str:
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


def same_result(wanted: list[Row], found: list[Row], comparison: Comparison, ordered: bool) -> bool:
    """Return True if two results are equal under a benchmark's rule."""
    if comparison == "bird":
        return set(wanted) == set(found)
    if not wanted or not found:
        return not wanted and not found
    if len(wanted) != len(found) or len(wanted[0]) != len(found[0]):
        return False
    nothing: list[Row] = [()] * len(wanted)
    return _match(list(zip(*wanted, strict=True)), list(zip(*found, strict=True)), nothing, nothing, ordered)


def _match(wanted: list[Row], found: list[Row], left: list[Row], right: list[Row], ordered: bool) -> bool:
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


def _reference_result(path: str, reference: str, limits: Limits) -> Result | QueryFailed:
    """Run the reference; return its result or failure, and cache it while there is room."""
    key = (path, reference, limits)
    if key not in _references:
        if sum(result.size for result in _references.values() if isinstance(result, Result)) > CACHE_BYTES:
            _references.clear()
        try:
            _references[key] = run_query(path, reference, limits)
        except QueryFailed as failure:
            _references[key] = failure
    return _references[key]
