"""TextToSQL on BIRD's and Spider's layouts, whole and broken; SyntheticSQL's tables and questions."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lit_rlvr.datamodules import SyntheticSQL, TextToSQL
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.datamodules.text_to_sql import schema_text
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import SQLExecution
from lit_rlvr.types import Completion

SCHOOLS = "CREATE TABLE schools (id INTEGER PRIMARY KEY, `School Name` TEXT)"
TEACHERS = "CREATE TABLE teachers (id INTEGER,\n  school INTEGER REFERENCES schools(id))"
BIRD = {
    "question_id": 7,
    "db_id": "schools",
    "question": "How many charter schools?",
    "evidence": "charter: id above 1",
    "SQL": "SELECT COUNT(*) FROM schools WHERE id > 1",
    "difficulty": "moderate",
}
SPIDER = {
    "db_id": "schools",
    "query": "SELECT count(*) FROM schools",
    "query_toks": ["SELECT", "count", "(", "*", ")", "FROM", "schools"],
    "question": "How many schools are there?",
    "question_toks": ["How", "many", "schools", "are", "there", "?"],
    "sql": {"from": {"conds": []}, "limit": None},
}


def make_database(path: Path, *more: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database:
        for statement in (SCHOOLS, TEACHERS, *more):
            database.execute(statement)
        database.execute("INSERT INTO schools VALUES (1, 'North'), (2, NULL), (3, 'South')")
        database.commit()
    return path


def samples(data: TextToSQL) -> list[Any]:
    return data.load("train")


def test_bird_is_read(tmp_path: Path) -> None:
    """`dev.json` next to `dev_databases/DB/DB.sqlite`; the training file has no id and no difficulty."""
    database = make_database(tmp_path / "dev_databases/schools/schools.sqlite")
    (tmp_path / "dev_databases/schools/database_description").mkdir()
    train = {key: BIRD[key] for key in ("db_id", "question", "evidence", "SQL")} | {"evidence": ""}
    (tmp_path / "dev.json").write_text(json.dumps([BIRD, train]))
    first, second = samples(TextToSQL(train=str(tmp_path / "dev.json")))
    assert first.prompt == (
        f"{SCHOOLS};\n{TEACHERS};\n\nQuestion: How many charter schools?\nHint: charter: id above 1"
    )
    assert (first.id, first.answer, first.category) == ("7", BIRD["SQL"], "moderate")
    assert first.row == {**BIRD, "databases": [str(database)]} and first.source == f"{tmp_path}/dev.json:1"
    assert second.prompt.endswith("\n\nQuestion: How many charter schools?")
    assert (second.id, second.category) == ("text_to_sql:2", "")


def test_spider_is_read(tmp_path: Path) -> None:
    """`database/DB/*.sqlite`, all of which judge a query; the one of the database's name gives the schema."""
    main = make_database(tmp_path / "database/schools/schools.sqlite")
    other = make_database(tmp_path / "database/schools/a.sqlite", "CREATE TABLE more (a)")
    (tmp_path / "train_spider.json").write_text(json.dumps([SPIDER]))
    (sample,) = samples(TextToSQL(train=str(tmp_path / "train_spider.json")))
    assert sample.prompt == f"{SCHOOLS};\n{TEACHERS};\n\nQuestion: How many schools are there?"
    assert (sample.answer, sample.category) == (SPIDER["query"], "")
    assert sample.row["databases"] == [str(main), str(other)]


def test_bad_rows_are_skipped_counted_and_named(jsonl: Any, tmp_path: Path) -> None:
    make_database(tmp_path / "databases/schools/schools.sqlite")
    (tmp_path / "databases/text.sqlite").write_text("no database " * 100)
    (tmp_path / "databases/empty.sqlite").touch()
    (tmp_path / "outside.sqlite").touch()
    bad = [
        {**BIRD, "db_id": "colleges"},
        {**BIRD, "db_id": "text"},
        {**BIRD, "db_id": "empty"},
        {**BIRD, "db_id": "../outside"},
        {**BIRD, "db_id": None},
        {**BIRD, "SQL": " "},
        {**BIRD, "question": [{"role": "assistant", "content": "How many?"}]},
        "{broken",
    ]
    path = jsonl([BIRD, *bad])
    with pytest.raises(
        UserError, match=r"8 of 9 rows cannot be used and max_bad_rows is 0.1: .*train.jsonl:2: database"
    ):
        samples(TextToSQL(train=path))
    data = TextToSQL(train=path, reading=ReadingOptions(max_bad_rows=0.9))
    assert len(samples(data)) == 1
    reasons = [str(row).removeprefix(f"{path}:") for row in data.bad_rows["train"]]
    folders = "{train_databases,dev_databases,databases,database,test_database}"
    assert reasons[:7] == [
        f"2: database: no colleges.sqlite in {tmp_path}/{folders}; `databases` names the folder",
        f"3: database: {tmp_path}/databases/text.sqlite is not a usable SQLite database: file is not a database",
        f"4: database: {tmp_path}/databases/empty.sqlite is not a usable SQLite database: it holds no table",
        "5: database: '../outside' is not the name of a database",
        "6: database: missing",
        "7: answer: empty",
        "8: prompt: no user message with content",
    ]
    assert reasons[7].startswith("9: row: broken JSON") and len(reasons) == 8


def test_schema_text_is_what_the_file_says(tmp_path: Path) -> None:
    path = make_database(
        tmp_path / "a.sqlite",
        'CREATE TABLE "odd "" name" (text TEXT, n REAL)',
        "CREATE INDEX i ON schools (id)",
        "CREATE VIEW northern AS SELECT * FROM schools WHERE id = 1",
        "CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT)",
        "INSERT INTO \"odd \"\" name\" VALUES ('two\n lines', 1.5), (CAST(X'ff41' AS TEXT), 2), ('"
        + "x" * 50
        + "', 3)",
    )
    before = path.read_bytes()
    odd, view = (
        'CREATE TABLE "odd "" name" (text TEXT, n REAL)',
        "CREATE VIEW northern AS SELECT * FROM schools WHERE id = 1",
    )
    auto = "CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT)"
    assert schema_text(path) == f"{SCHOOLS};\n{TEACHERS};\n{odd};\n{view};\n{auto};"
    assert schema_text(path, 2) == "\n".join([
        f"{SCHOOLS};", '/* the first rows of "schools":', "id\tSchool Name", "1\tNorth", "2\tNULL", "*/",
        f"{TEACHERS};", '/* the first rows of "teachers":', "id\tschool", "*/",
        f"{odd};", '/* the first rows of "odd "" name":', "text\tn", "two lines\t1.5", "\ufffdA\t2.0", "*/",
        f"{view};", '/* the first rows of "northern":', "id\tSchool Name", "1\tNorth", "*/",
        f"{auto};", '/* the first rows of "auto":', "id", "*/",
    ])  # fmt: skip
    assert "\n" + "x" * 37 + "...\t3.0\n" in schema_text(path, 3)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_example_rows_and_the_template_are_options(tmp_path: Path, jsonl: Any, chat_tokenizer: Any) -> None:
    make_database(tmp_path / "databases/schools.sqlite")
    path = jsonl([SPIDER])
    data = TextToSQL(train=path, example_rows=1)
    data.tokenizer = chat_tokenizer
    assert "1\tNorth\n*/" in samples(data)[0].prompt and "2\tNULL" not in samples(data)[0].prompt
    assert "are there?\n\nAnswer with one SQLite query in a ```sql block.<|im_end|>" in data.render(samples(data)[0])
    plain = TextToSQL(train=path, chat=Chat(template="{prompt}"))
    plain.tokenizer = chat_tokenizer
    assert "Question: How many schools are there?<|im_end|>" in plain.render(samples(plain)[0])
    with pytest.raises(UserError, match=r"data.example_rows: .* must lie in"):
        TextToSQL(train=path, example_rows=-1)


def test_a_reference_is_right_by_its_own_reward(tmp_path: Path, jsonl: Any) -> None:
    """What the data writes into a row is what the reward reads there."""
    make_database(tmp_path / "elsewhere/schools.sqlite")
    (sample,) = samples(TextToSQL(train=jsonl([BIRD]), databases=str(tmp_path / "elsewhere")))
    texts = [f"```sql\n{BIRD['SQL']};\n```", "SELECT 2", "SELECT 3"]
    results = SQLExecution().score([(Completion(text, (1,), "stop"), sample) for text in texts])
    assert [result.correct for result in results] == [True, True, False]


# generated


def test_generated_tables_are_split_by_seed_and_none_is_in_both(tmp_path: Path) -> None:
    def load(seed: int) -> tuple[list[Any], list[Any]]:
        data = SyntheticSQL(tables=8, held_out=3, seed=seed, folder=str(tmp_path))
        return data.load("train"), data.load("validation")

    train, validation = load(0)
    assert (len(train), len(validation)) == (5 * 11, 3 * 11)
    assert not {s.row["databases"][0] for s in train} & {s.row["databases"][0] for s in validation}
    assert len({s.id for s in train} | {s.id for s in validation}) == 88
    assert [s.prompt for s in load(0)[1]] == [s.prompt for s in validation]
    assert [s.prompt for s in load(1)[1]] != [s.prompt for s in validation]
    assert SyntheticSQL(folder=str(tmp_path)).load("test") == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = SyntheticSQL(tables=2, held_out=1, folder=str(tmp_path / "given"))
    written = data.load("train")
    monkeypatch.setattr("lit_rlvr.datamodules.toys.synthetic_sql.write_atomically", _denied)
    assert data.load("train") == written, "equal databases stay, so that the folder may be one that can only be read"
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    said = r"^data\.folder: .*cache/synthetic_sql/seed-0 cannot be written: Permission denied; .* set LIT_RLVR_CACHE"
    with pytest.raises(UserError, match=said):
        SyntheticSQL(tables=2, held_out=1).load("train")


def _denied(path: Path, content: bytes) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_generated_databases_are_the_same_every_time(tmp_path: Path) -> None:
    for folder in ("a", "b", "b"):
        data = SyntheticSQL(tables=4, held_out=1, folder=str(tmp_path / folder))
        data.load("train"), data.load("validation")
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / f / "seed-0").iterdir()} for f in "ab")
    assert first == second and sorted(first) == ["actors.sqlite", "albums.sqlite", "apples.sqlite", "bikes.sqlite"]


def test_every_generated_question_has_an_answer_that_is_not_trivial(tmp_path: Path) -> None:
    data = SyntheticSQL(folder=str(tmp_path))
    everything = data.load("train") + data.load("validation")
    kinds = {"count": 1, "list": 3, "aggregate": 3, "filter": 1, "top": 2, "group": 1}
    assert Counter(s.category for s in everything) == {kind: 40 * count for kind, count in kinds.items()}
    for sample in everything:
        with closing(sqlite3.connect(sample.row["databases"][0])) as database:
            rows = database.execute(sample.answer).fetchall()
            assert (bool(rows), None in rows[0], sample.prompt.startswith("CREATE TABLE")) == (True, False, True)
            if sample.category == "filter":
                assert 0 < len(rows) < database.execute(f"SELECT COUNT(*) FROM {sample.id.split(':')[0]}").fetchone()[0]
