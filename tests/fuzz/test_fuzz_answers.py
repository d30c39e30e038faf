"""Hostile answers to every reward: a verdict within its limits, the reference's own answer judged right in between."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fuzzing import examples
from hostile_answers import ANSWERS
from hypothesis import given, strategies as st

from lit_rlvr.rewards import Choice, Format, MathAnswer, OpenAnswer, Reward, SQLExecution
from lit_rlvr.types import Completion, Sample

pytestmark = pytest.mark.slow

LATEX = (
    "\\frac{", "\\sqrt[", "}", "{", "]", "^", "_", "\\left(", "\\right)", "\\boxed{", "$", "$$", "\\[", "\\text{", "&",
    "\\\\", "\\begin{pmatrix}", "\\end{pmatrix}", "\\cdot", "\\pi", "\\infty", "!", "|", ",", "=", "<", ">", "%", "x",
    "7", "10", "-", "+", "*", "/", ".", " ", "\n", "e", "i", "\\log", "\\sin", "\\int", "\\sum", "\\mathbb{R}", "\\cup",
)  # fmt: skip
SQL = (
    "SELECT", "*", "FROM", "t", "WHERE", "a", "=", "1", "'x'", "(", ")", ",", "WITH RECURSIVE", "AS", "UNION ALL", ";",
    "--", "/*", "*/", "JOIN", "ON", "GROUP BY", "ORDER BY", "LIMIT", "PRAGMA", "DROP TABLE t", "randomblob(1e9)",
    "NULL", "```sql", "```", "\x00", "CAST", "COUNT(*)", "printf('%.*c', 1e9, 'x')", "INSERT INTO t VALUES (1)",
)  # fmt: skip


def said(parts: tuple[str, ...], between: str) -> st.SearchStrategy[str]:
    loose = st.lists(st.sampled_from(parts), max_size=25).map(between.join)
    return st.sampled_from(ANSWERS) | loose | loose.map("\\boxed{{{}}}".format) | st.text(max_size=80)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "d" / "d.sqlite"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (1), (2)")
    return path


@pytest.fixture(params=["math", "choice", "open", "format", "sql"])
def judged(request: pytest.FixtureRequest, database: Path) -> Iterator[tuple[Reward, Sample, str]]:
    """A reward, a question, and its right answer."""
    row = {"databases": (str(database),), "db_id": "d"}
    reward, sample, right = {
        "math": lambda: (MathAnswer(), Sample("x", "?", "7"), "\\boxed{7}"),
        "choice": lambda: (Choice(), Sample("x", "?", "B", options=("1", "2")), "\\boxed{B}"),
        "open": lambda: (OpenAnswer(), Sample("x", "?", "lung"), "\\boxed{lung}"),
        "format": lambda: (Format(pattern="<answer>"), Sample("x", "?", "7"), "<think>a</think><answer>7</answer>"),
        "sql": lambda: (SQLExecution(), Sample("x", "?", "SELECT a FROM t", row=row), "```sql\nSELECT a FROM t\n```"),
    }[request.param]()
    yield reward, sample, right
    reward.close()


@examples(6)
@given(data=st.data())
def test_every_answer_gets_a_verdict(judged: tuple[Reward, Sample, str], database: Path, data: st.DataObject) -> None:
    reward, sample, right = judged
    parts, between = (SQL, " ") if isinstance(reward, SQLExecution) else (LATEX, "")
    texts = data.draw(st.lists(said(parts, between), min_size=1, max_size=6))
    before = database.read_bytes()
    started = time.monotonic()
    results = reward.score([(Completion(text, (1,), "stop"), sample) for text in [*texts, right]])
    assert time.monotonic() - started < 30 * (1 + len(texts)), "no check outlasts its limit"
    assert len(results) == len(texts) + 1
    assert all(r.status in ("ok", "parse_fail", "timeout", "error") for r in results)
    assert results[-1].status == "ok" and results[-1].value == 1.0, "others' answers do not spoil a right one"
    assert database.read_bytes() == before
