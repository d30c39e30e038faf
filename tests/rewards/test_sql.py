"""SQLExecution: what is equal under each rule, what a query may not do, and whose fault a failure is."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from contextlib import closing
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hostile_answers import assert_linear

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import SQLExecution, sql
from lit_rlvr.rewards.sql import check_sql, extract_sql, is_ordered, same_result
from lit_rlvr.rewards.sql_query import ExecutionFailed, QueryLimits, connect, run_query
from lit_rlvr.types import Completion, RewardResult, Sample

LIMITS = QueryLimits(instructions=20_000_000, rows=1000)
ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT {} FROM r"


@pytest.fixture
def pets(tmp_path: Path) -> str:
    """A database whose path needs quoting; one text is not UTF-8."""
    path = tmp_path / "50% #pets?.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE pets (name TEXT, kind TEXT, age INTEGER, weight REAL)")
        rows = [("Ada", "cat", 3, 4.5), ("Ben", "dog", 9, 30.1), ("Cleo", "cat", 7, None), ("Dan", None, 3, 0.3)]
        database.executemany("INSERT INTO pets VALUES (?, ?, ?, ?)", rows)
        database.execute("CREATE TABLE odd (text TEXT)")
        database.execute("INSERT INTO odd VALUES (CAST(X'ff41' AS TEXT)), (CAST(X'fe41' AS TEXT))")
        database.commit()
    return str(path)


def judge(database: str | list[str], text: str, gold: str, **options: Any) -> RewardResult:
    files = [database] if isinstance(database, str) else database
    completion = Completion(f"```sql\n{text}\n```", (1,), "stop")
    return SQLExecution(**options)(completion, Sample("a", "?", gold, row={"databases": files}))


def verdict(database: str, sql: str, gold: str, comparison: Any = "bird") -> tuple[bool, str]:
    return check_sql(f"```{sql}```", gold, (database,), comparison, LIMITS)[:2]


# what the SQL is


@pytest.mark.parametrize(
    "text,sql",
    [
        ("```sql\nSELECT 1\n```", "SELECT 1"),
        ("First ```sql\nSELECT 1\n``` but then\n```sqlite\nSELECT 2;\n```\nDone.", "SELECT 2;"),
        ("```\nSELECT 1\n``` and ```\n```", "SELECT 1"),
        ("```SELECT 1```", "SELECT 1"),
        ("```sql\nSELECT 1", "SELECT 1"),
        ("<think>```sql\nSELECT 1\n```</think>\n```SQL\nSELECT 2\n```", "SELECT 2"),
        ("<think>\nSELECT 1\n</think> I do not know", ""),
        ("Here it is:\nselect a\nfrom (\nselect 1 a)\n\nIt selects a.", "select a\nfrom (\nselect 1 a)"),
        ("SELECT 1\n\nno:\n\nSELECT 2", "SELECT 2"),
        ("WITH t AS (SELECT 1)\nSELECT 2\n\nWith this query you get it.", "WITH t AS (SELECT 1)\nSELECT 2"),
        ("WITH RECURSIVE t(x) AS (SELECT 1) SELECT x FROM t", "WITH RECURSIVE t(x) AS (SELECT 1) SELECT x FROM t"),
        ("```sql\nSELECT 1; DROP TABLE pets\n```", "SELECT 1; DROP TABLE pets"),
        ("```sql\nSELECT 1\n```\nResult:\n```text\n1\n```", "SELECT 1"),
        ("```sql\nSELECT 1\n```\nResult:\n```\n1\n```", "SELECT 1"),
        ("```\nSELECT 1\n```\n| x |\n```\nx\n---\n1\n```\n```json\n[1]\n```", "SELECT 1"),
        ("```sqlite3\nSELECT 1\n```", "SELECT 1"),
        ("```postgresql\nSELECT 1\n```", "SELECT 1"),
        ('```sql title="a.sql"\nSELECT 1\n```', "SELECT 1"),
        ("```{.sql}\nSELECT 1\n```", "SELECT 1"),
        ("````mysql\nSELECT 1\n````", "SELECT 1"),
        ("~~~sql\nSELECT 1\n~~~", "SELECT 1"),
        ("1. Query:\n   ```sql\n   SELECT 1\n   ```", "SELECT 1"),
        ("```sql\n-- one\nSELECT 1\n```\n```bash\nsqlite3 a.db\n```", "-- one\nSELECT 1"),
        ("```SELECT a\nFROM t\n```", "SELECT a\nFROM t"),
        ("```python\nprint(1)\n```", ""),
        ("<think>```sql\nSELECT 1\n```", ""),
        ("WITH a AS (select 1 as x)\n\nSELECT x FROM a", "WITH a AS (select 1 as x)\n\nSELECT x FROM a"),
        ("```sql SELECT a\nFROM t```", "SELECT a\nFROM t"),
        ("```sql SELECT 1```", "SELECT 1"),
        (
            "WITH a AS (\n\nselect 1 as x\n\n)\n\nSELECT x\n\nFROM a\n\nIt is 1.",
            "WITH a AS (\n\nselect 1 as x\n\n)\n\nSELECT x\n\nFROM a",
        ),
        ("SELECT a\n\nFROM t\n\nWHERE b = 1\n\nFrom t you get a.", "SELECT a\n\nFROM t\n\nWHERE b = 1"),
        ("select 1\n\nunion\n\nselect 2", "select 1\n\nunion\n\nselect 2"),
        ("select a\n\nfrom t;\n\nfrom t you get a.", "select a\n\nfrom t;"),
        ("SELECT 1;\nIt selects 1.", "SELECT 1;"),
        ("SQL: SELECT 1", "SELECT 1"),
        ("The query is:\n`SELECT 1`.", "SELECT 1"),
        ("<answer>SELECT 1</answer>", "SELECT 1"),
        ("<sql>\nSELECT 1\n</sql>\nDone.", "SELECT 1"),
        ("The answer is 7.", ""),
        ("``````", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_query_is_extracted(text: str, sql: str) -> None:
    assert extract_sql(text) == sql


def test_several_semicolons_end_a_query_and_words_may_stand_before_one(tmp_path: Path) -> None:
    database = tmp_path / "d.sqlite"
    sqlite3.connect(database).close()
    texts = (
        "```sql\nselect 1;;\n```",
        "```sql\nselect 1; ;\n```",
        "```sql\nselect 1; /* one */ ; -- done\n```",
        "The final query is: SELECT 1",
        "sql = SELECT 1;",
        "The query:\n> SELECT 1",
        "**SELECT 1;**\n",
        'The query: "SELECT 1"',
        "So the query is `SELECT 1`, which has one row.",
    )
    for text in texts:
        assert check_sql(text, "select 1", (str(database),), "bird", LIMITS)[:2] == (True, "ok"), text
    assert not check_sql("```sql\nselect 1; select 2;\n```", "select 1", (str(database),), "bird", LIMITS)[0]
    assert not check_sql("The final query is: SELECT 2", "select 1", (str(database),), "bird", LIMITS)[0]


def test_result_tables_and_tags_do_not_spoil_a_right_query(pets: str) -> None:
    for text in (
        "```sql\nSELECT 1\n```\nResult:\n```text\n1\n```",
        "```sql\nSELECT 1\n```\nResult:\n```\n1\n```",
        "```sqlite3\nSELECT 1\n```",
        "```postgresql\nSELECT 1\n```",
        "WITH a AS (select 1 as x)\n\nSELECT x FROM a",
    ):
        assert check_sql(text, "select 1", (pets,), "bird", LIMITS)[:2] == (True, "ok"), text


@pytest.mark.parametrize("piece", ["```", "```sql\n", "SELECT (", "WITH a AS (\n\n", "(", "SELECT 1\n\n", "`", "~~~\n"])
def test_hostile_texts_are_searched_quickly(piece: str) -> None:
    assert_linear(lambda size: extract_sql(piece * size), 5000)


@pytest.mark.parametrize(
    "sql,ordered",
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 3", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT a FROM (SELECT (1) FROM t) ORDER BY (a)", True),
        ("SELECT rank() OVER (PARTITION BY a ORDER BY b) FROM t", False),
        ("SELECT 'x ORDER BY y' FROM t", False),
        ("SELECT 'it''s ( ' FROM t ORDER BY 1", True),
        ("SELECT a FROM t -- ORDER BY a", False),
        ("SELECT a FROM t /* ORDER BY a */", False),
        ('SELECT "order by" FROM t', False),
        ("SELECT reorder, bydate FROM t", False),
    ],
)
def test_is_ordered(sql: str, ordered: bool) -> None:
    assert is_ordered(sql) is ordered


# when results are equal: query, reference, by BIRD's rule, by Spider's

CASES = [
    ("SELECT name FROM pets WHERE age = 3", "SELECT name FROM pets WHERE age < 4", True, True),
    ("SELECT name FROM pets", "SELECT name FROM pets WHERE age < 4", False, False),
    ("SELECT name FROM pets ORDER BY name DESC", "SELECT name FROM pets", True, True),
    ("SELECT name FROM pets ORDER BY name DESC", "SELECT name FROM pets ORDER BY name", True, False),
    ("SELECT name FROM pets ORDER BY age, name", "SELECT name FROM pets ORDER BY age, name", True, True),
    ("SELECT age FROM pets", "SELECT DISTINCT age FROM pets", True, False),
    ("SELECT age FROM pets", "SELECT age FROM pets UNION ALL SELECT 3", True, False),
    ("SELECT age, name FROM pets", "SELECT name, age FROM pets", False, True),
    ("SELECT age, name FROM pets ORDER BY age, name", "SELECT name, age FROM pets ORDER BY age, name", False, True),
    ("SELECT name, name FROM pets", "SELECT name FROM pets", False, False),
    ("SELECT name, age FROM pets", "SELECT name, age FROM pets WHERE 0", False, False),
    ("SELECT name, age FROM pets WHERE 0", "SELECT name FROM pets WHERE 0", True, True),
    ("SELECT kind FROM pets WHERE name = 'Dan'", "SELECT NULL", True, True),
    ("SELECT ''", "SELECT NULL", False, False),
    ("SELECT 0", "SELECT NULL", False, False),
    ("SELECT 1", "SELECT 1.0", True, True),
    ("SELECT '1'", "SELECT 1", False, False),
    ("SELECT 'a'", "SELECT X'61'", False, False),
    ("SELECT 'A'", "SELECT 'a'", False, False),
    ("SELECT 0.1 + 0.2", "SELECT 0.3", True, True),
    ("SELECT 1.0 / 3", "SELECT 0.3333333333333", True, True),
    ("SELECT 0.33333", "SELECT 1.0 / 3", False, False),
    ("SELECT 1234567890.49", "SELECT 1234567890.12", False, False),
    ("SELECT 12345678901.000002", "SELECT 12345678901", True, True),
    ("SELECT 10000000000001.0", "SELECT 10000000000002", False, False),
    ("SELECT 0.1 + 0.2 - 0.3", "SELECT 0", True, True),
    ("SELECT 0.3, 0.1 + 0.2 UNION ALL SELECT 0, 0.5", "SELECT 0.3, 0.3 UNION ALL SELECT 0, 0.5", True, True),
    ("SELECT 0.1 + 0.2 UNION ALL SELECT 0.3", "SELECT 0.3 UNION ALL SELECT 0.3", True, True),
    ("SELECT 0.1 + 0.2 UNION ALL SELECT 0.3", "SELECT 0.3", True, False),
    ("SELECT 100000000001", "SELECT 100000000002", False, False),
    ("SELECT 1e999", "SELECT 2e999", True, True),
    ("SELECT text FROM odd", "SELECT text FROM odd", True, True),
    ("SELECT text FROM odd LIMIT 1", "SELECT text FROM odd LIMIT 1 OFFSET 1", False, False),
]


@pytest.mark.parametrize("sql,gold,bird,spider", CASES)
def test_tables_are_compared(pets: str, sql: str, gold: str, bird: bool, spider: bool) -> None:
    assert verdict(pets, sql, gold, "bird") == (bird, "ok")
    assert verdict(pets, sql, gold, "spider") == (spider, "ok")


def try_all(wanted: list[tuple[Any, ...]], found: list[tuple[Any, ...]]) -> bool:
    """Spider's rule, every permutation tried."""
    orders = permutations(range(len(wanted[0])))
    return any(sorted(wanted) == sorted(tuple(row[i] for i in order) for row in found) for order in orders)


def test_columns_are_matched_as_by_trying_every_permutation() -> None:
    """Columns of few values, so that many look alike alone and only some fit together."""
    draw, seen = random.Random(0), set()
    for _ in range(2000):
        width, height = draw.randint(1, 4), draw.randint(1, 4)
        wanted = [tuple(draw.choices((0, 1), k=width)) for _ in range(height)]
        order = draw.sample(range(width), width)
        found = [tuple(row[i] for i in order) for row in draw.sample(wanted, height)]
        if draw.random() < 0.5:
            column = draw.randrange(width)  # shuffled by itself: as a column it still fits
            values = draw.sample([row[column] for row in found], height)
            found = [(*row[:column], value, *row[column + 1 :]) for row, value in zip(found, values, strict=True)]
        expected = try_all(wanted, found)
        assert same_result(wanted, found, "spider", ordered=False) is expected, (wanted, found)
        seen.add(expected)
    assert seen == {True, False}


def test_every_database_must_agree(pets: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.sqlite")
    with closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE pets (name TEXT, kind TEXT, age INTEGER, weight REAL)")
        database.execute("INSERT INTO pets VALUES ('Eva', 'cow', 1, 1.0)")
        database.commit()
    gold, lucky = "SELECT COUNT(*) FROM pets", "SELECT 4"
    assert judge(pets, lucky, gold).correct is True
    assert judge([pets, other], lucky, gold).correct is False
    assert judge([pets, other], "SELECT COUNT(name) FROM pets", gold).correct is True


def test_the_tolerance_is_an_option(pets: str) -> None:
    for tolerance, correct in ((1e-12, False), (1e-4, True), (0.0, False)):
        assert judge(pets, "SELECT 0.33333", "SELECT 1.0 / 3", float_tolerance=tolerance).correct is correct
    assert judge(pets, "SELECT 0.1 + 0.2", "SELECT 0.3", float_tolerance=0.0).correct is False


@pytest.mark.parametrize("allowed", [True, False])
def test_gold_answers_without_rows_are_counted_and_may_be_left_out(pets: str, allowed: bool, caplog: Any) -> None:
    nothing, reward = "SELECT name FROM pets WHERE age > 99", SQLExecution(allow_empty=allowed)
    pairs = [
        (Completion(f"```{text}```", (1,), "stop"), Sample(gold, "?", gold, row={"databases": [pets]}, source="f:3"))
        for text, gold in ((nothing, nothing), ("SELECT 1", nothing), ("SELECT 4", "SELECT COUNT(*) FROM pets"))
    ]
    for _ in range(2):
        found = [(result.correct, result.status) for result in reward.score(pairs)]
        assert found == [*([(True, "ok"), (False, "ok")] if allowed else [(None, "unjudged")] * 2), (True, "ok")]
    (said,) = caplog.messages
    assert said.startswith("reward sql_execution: the references of 1 of 2 prompts have no rows (first, f:3), so ")
    assert ("set allow_empty: false" in said) == allowed


# what a query may not do

FORBIDDEN = [
    "INSERT INTO pets VALUES ('x', 'y', 1, 2)",
    "REPLACE INTO pets VALUES ('x', 'y', 1, 2)",
    "UPDATE pets SET age = 0 RETURNING age",
    "DELETE FROM pets",
    "WITH old AS (SELECT 3 AS age) DELETE FROM pets WHERE age IN old",
    "DROP TABLE pets",
    "ALTER TABLE pets RENAME TO dogs",
    "CREATE TABLE x (a)",
    "CREATE TEMP TABLE x AS SELECT * FROM pets",
    "CREATE TEMP TRIGGER t BEFORE DELETE ON pets BEGIN SELECT 1; END",
    "CREATE VIRTUAL TABLE x USING fts5(a)",
    "ATTACH 'other.db' AS other",
    "DETACH main",
    "VACUUM",
    "VACUUM INTO 'copy.db'",
    "REINDEX",
    "ANALYZE",
    "BEGIN",
    "COMMIT",
    "SAVEPOINT a",
    "PRAGMA user_version = 3",
    "PRAGMA journal_mode = WAL",
    "PRAGMA writable_schema = 1",
    "PRAGMA hard_heap_limit = 0",
    "PRAGMA table_info(pets)",
    "SELECT * FROM pragma_table_info('pets')",
    "SELECT load_extension('./evil')",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('evil', 'x')",
    "SELECT random()",
    "SELECT hex(randomblob(4))",
    "SELECT name FROM pets; DROP TABLE pets",
    "SELECT 1; SELECT 2",
    "SELECT nothing FROM pets",
    "SELECT name FROM nowhere",
    "SELEC name FROM pets",
    "SELECT name FROM pets WHERE age = ?",
    "SELECT '\ud800'",
    "SELECT 'a\0b'",
    "-- nothing",
    ";",
    "import os; os.system('touch evil')",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
]


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_what_is_forbidden_fails_and_leaves_every_file_as_it_was(
    pets: str, tmp_path: Path, journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(pets)) as database:
        database.execute(f"PRAGMA journal_mode = {journal}")
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    # the reference's result is empty, as that of a statement that does nothing would be
    assert {sql: verdict(pets, sql, "SELECT 1 WHERE 0") for sql in FORBIDDEN} == dict.fromkeys(
        FORBIDDEN, (False, "parse_fail")
    )
    assert verdict(pets, "SELECT COUNT(*) FROM pets", "SELECT 4") == (True, "ok")
    assert files(tmp_path) == before and list(before) == [Path(pets).name]


def test_the_file_itself_is_opened_read_only(pets: str) -> None:
    """Whatever the authorizer lets through."""
    with closing(connect(pets)) as database, pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.execute("DELETE FROM pets")


# limits

TOO_MUCH = {
    "counting": (ENDLESS.format("COUNT(*)"), "too many instructions"),
    "product": (
        "SELECT COUNT(*) FROM pets a, pets b, pets c, pets d, pets e, pets f, pets g, pets h, pets i, pets j, "
        "pets k, pets l",
        "too many instructions",
    ),
    "rows": (ENDLESS.format("x"), "more than 1000 rows"),
    "wide": ("SELECT hex(zeroblob(4000000)) FROM pets a, pets b", "more than 1000 rows or 32 MiB"),
    "blob": ("SELECT zeroblob(999999999)", "string or blob too big"),
    "text": ("SELECT replace(hex(zeroblob(4000000)), '0', 'abcdefgh')", "string or blob too big"),
    "sorting": (ENDLESS.format("hex(zeroblob(1000000)) || x AS t") + " ORDER BY t", "out of memory"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_limits_stop_queries(pets: str, name: str) -> None:
    sql, reason = TOO_MUCH[name]
    correct, status, detail = check_sql(f"```{sql}```", "SELECT 1", (pets,), "bird", LIMITS)
    assert (correct, status) == (False, "timeout") and detail.startswith(reason)


def test_instructions_are_counted_exactly(pets: str) -> None:
    """The verdict does not depend on how busy the machine is."""
    sql = ENDLESS.format("x") + " LIMIT {}"

    def runs(rows: int) -> bool:
        try:
            return bool(run_query(pets, sql.format(rows), QueryLimits(50_000, 10**9)).rows)
        except ExecutionFailed:
            return False

    limit = next(rows for rows in range(1000, 10_000, 100) if not runs(rows))
    assert [[runs(limit - 100), runs(limit)] for _ in range(5)] == [[True, False]] * 5


def test_a_query_that_no_instruction_counts_is_killed(pets: str) -> None:
    """A search for a long text in a long text is one instruction."""
    search = "SELECT instr(hex(zeroblob(4000000)), hex(zeroblob(200000)) || '1')"
    slow, right = SQLExecution(cpu_seconds=0.5).score(
        [
            (Completion(f"```{sql}```", (1,), "stop"), Sample("a", "?", "SELECT 4", row={"databases": [pets]}))
            for sql in (search, "SELECT COUNT(*) FROM pets")
        ]
    )
    assert (slow.value, slow.correct, slow.status) == (0.0, False, "timeout") and "CPU" in slow.detail
    assert right.correct is True
    blamed = judge(pets, "SELECT 4", search, cpu_seconds=0.5)
    assert (blamed.value, blamed.correct, blamed.status) == (0.0, None, "error") and "reference" in blamed.detail


# whose fault it is


def test_every_outcome_has_its_status(pets: str) -> None:
    gold = "SELECT COUNT(*) FROM pets"
    right, wrong = judge(pets, "SELECT 4", gold), judge(pets, "SELECT 5", gold)
    assert right == RewardResult(1.0, True, "ok", "SELECT 4")
    assert wrong == RewardResult(0.0, False, "ok", "SELECT 5")
    refused = judge(pets, "DROP TABLE pets", gold)
    assert refused == RewardResult(0.0, False, "parse_fail", "not authorized: DROP TABLE pets")
    assert judge(pets, "", gold).status == "parse_fail"
    endless = judge(pets, ENDLESS.format("COUNT(*)"), gold, max_instructions=1_000_000)
    assert (endless.value, endless.correct, endless.status) == (0.0, False, "timeout")


def test_truncated_is_wrong_unless_told_otherwise(pets: str) -> None:
    sample = Sample("a", "?", "SELECT 1", row={"databases": [pets]})
    pairs = [(Completion("SELECT 1", (1,), reason), sample) for reason in ("length", "stop", "length")]  # type: ignore[arg-type]
    assert [r.value for r in SQLExecution().score(pairs)] == [0.0, 1.0, 0.0]
    assert SQLExecution().score(pairs)[0] == RewardResult(0.0, False, "ok", "cut off")
    assert [r.value for r in SQLExecution(truncated_is_wrong=False).score(pairs)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("gold", ["SELECT nothing FROM pets", "DELETE FROM pets", ENDLESS.format("COUNT(*)"), "--"])
def test_a_reference_that_fails_is_the_checkers_failure(pets: str, gold: str) -> None:
    for text in (gold, "SELECT 1"):
        result = judge(pets, text, gold, max_instructions=1_000_000)
        assert (result.value, result.correct, result.status) == (0.0, None, "error")
        assert "the reference query failed" in result.detail and gold in result.detail


def test_a_missing_or_broken_database_is_the_checkers_failure(pets: str, tmp_path: Path) -> None:
    missing, text, torn = tmp_path / "missing.sqlite", tmp_path / "text.sqlite", tmp_path / "torn.sqlite"
    text.write_text("this is no database " * 100)
    with closing(sqlite3.connect(torn)) as database:
        database.execute("CREATE TABLE pets AS SELECT 'Ada' AS name")
        database.executemany("INSERT INTO pets VALUES (?)", [("x" * 1000,)] * 100)
        database.commit()
    torn.write_bytes(torn.read_bytes()[:4096] + b"\xff" * 4096 * 20)
    for path in (missing, text, torn):
        result = judge(str(path), "SELECT name FROM pets", "SELECT COUNT(*) FROM pets")
        assert (result.value, result.correct, result.status) == (0.0, None, "error"), result
        assert str(path) in result.detail
    assert not missing.exists()
    # broken only where the answer looks: still not its fault
    assert judge(str(torn), "SELECT name FROM pets", "SELECT 1").status == "error"


def test_a_row_without_databases_ends_the_run(pets: str) -> None:
    with pytest.raises(UserError, match=r"f:1: no `databases` in its row; SQLExecution needs the data of TextToSQL"):
        SQLExecution()(Completion("SELECT 1", (1,), "stop"), Sample("a", "?", "SELECT 1", source="f:1"))


# the reference's result is kept


def test_the_reference_is_run_once_and_its_results_fit_the_memory(pets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(path: str, sql: str, limits: QueryLimits) -> Any:
        ran.append(sql)
        return run_query(path, sql, limits)

    monkeypatch.setattr(sql, "run_query", run)
    monkeypatch.setattr(sql, "_references", {})
    for _ in range(3):
        check_sql("```SELECT 3```", "SELECT 4", (pets,), "bird", LIMITS)
    assert (ran.count("SELECT 4"), ran.count("SELECT 3")) == (1, 3)
    failures = {check_sql("```SELECT 3```", "SELECT none", (pets,), "bird", LIMITS) for _ in range(3)}
    assert ran.count("SELECT none") == len(failures) == 1, "a reference that fails, too"
    monkeypatch.setattr(sql, "CACHE_BYTES", 1000)
    for number in range(100):
        check_sql("```SELECT 4```", f"SELECT {number}", (pets,), "bird", LIMITS)
    assert len(sql._references) < 20
