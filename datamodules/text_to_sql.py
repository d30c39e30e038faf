"""Questions about SQLite databases, read in the layouts of BIRD and Spider."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.columns import lookup
from lit_rlvr.common.paths import expanded
from lit_rlvr.datamodules.base import PromptDataModule
from lit_rlvr.datamodules.reading.cells import BadRow, as_text
from lit_rlvr.datamodules.reading.chat import Chat, wrapped_prompt
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.datamodules.reading.rows import map_columns
from lit_rlvr.rewards.sql_query import connect
from lit_rlvr.types import Sample

CELL_CHARACTERS = 40
"""Most characters of a value in an example row."""


def schema_text(path: Path, example_rows: int = 0) -> str:
    """Return the CREATE statements of a database's tables and views, in the order of their creation.

    Args:
        path: a SQLite file, which is opened read-only.
        example_rows: rows to show in a comment below each statement, as in Rajkumar et al. 2022.

    Raises:
        sqlite3.Error: the file cannot be read, or holds no table.
    """
    with closing(connect(path)) as database:
        statements = database.execute(
            "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite~_%' "
            "ESCAPE '~' ORDER BY rowid"
        ).fetchall()
        if not statements:
            raise sqlite3.DatabaseError("it holds no table")
        parts = []
        for name, sql in statements:
            examples = _examples(database, name, example_rows) if example_rows else ""
            parts.append(f"{sql.strip()};{examples}")
    return "\n".join(parts).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _examples(database: sqlite3.Connection, table: str, count: int) -> str:
    """Return the first rows of a table as an SQL comment."""
    quoted = '"' + table.replace('"', '""') + '"'
    rows = database.execute(f"SELECT * FROM {quoted} LIMIT {count}")
    lines = ["\t".join(column[0] for column in rows.description), *("\t".join(map(_tsv_value, row)) for row in rows)]
    return f"\n/* the first rows of {quoted}:\n" + "\n".join(lines) + "\n*/"


def _tsv_value(value: Any) -> str:
    """Return a value on one line, shortened."""
    text = "NULL" if value is None else " ".join(str(value).split())
    if len(text) <= CELL_CHARACTERS:
        return text
    return text[: CELL_CHARACTERS - 3] + "..."


DATABASE_FOLDERS = ("train_databases", "dev_databases", "databases", "database", "test_database")
"""Names that BIRD and Spider give the folder of databases, which is next to the data file."""

SQL_COLUMNS = (
    ("prompt", "question"),
    ("answer", "query"),
    ("answer", "SQL"),
    ("database", "db_id"),
    ("evidence", "evidence"),
    ("id", "question_id"),
    ("category", "difficulty"),
)
"""(field, column of Spider (`query`) or BIRD)."""


class TextToSQL(PromptDataModule):
    """BIRD, Spider, or any set of questions with reference queries: the schema and the question are the prompt.

    A row whose database is missing or broken is a bad row.

    Args:
        columns: which column holds `prompt` (the question), `answer` (the query), `database` (its name), `evidence`,
            `id` and `category`. For omitted fields, the column names of BIRD (`question`, `SQL`, `db_id`, `evidence`,
            `question_id`, `difficulty`) or Spider (`question`, `query`, `db_id`) are tried, then the field's own name.
        databases: folder with the databases, as `NAME/NAME.sqlite` or `NAME.sqlite`. By default a folder next to the
            data file, called `train_databases`, `dev_databases`, `databases`, `database` or `test_database`. Queries
            are also judged on every other .sqlite file next to `NAME/NAME.sqlite`.
        example_rows: show this many rows of each table below its schema.
        reading: which rows are used, and how; prompts of up to 4,096 tokens by default.
        chat: the text that the model sees, by default with the template `sql`.
    """

    fields: Sequence[str] = ("prompt", "answer", "database", "evidence", "id", "category")

    def __init__(
        self,
        columns: dict[str, str] | None = None,
        databases: str | None = None,
        example_rows: int = 0,
        reading: ReadingOptions = ReadingOptions(max_prompt_tokens=4096),  # noqa: B008
        chat: Chat = Chat(template="sql"),  # noqa: B008
        **kwargs: Any,
    ) -> None:
        super().__init__(columns=columns, reading=reading, chat=chat, **kwargs)
        check_within("[0, inf)", "data", example_rows=example_rows)
        self.databases = databases
        self.example_rows = example_rows
        self._schemas: dict[Path, str] = {}

    def sample(self, row: dict[str, Any], index: int, source: str) -> Sample:
        columns = {field: column for field, column in SQL_COLUMNS if column in row} | (self.columns or {})
        mapped = {}
        for field, column in columns.items():
            if field not in ("database", "evidence"):
                mapped[field] = column
        sample = map_columns(row, mapped, f"{self.name}:{index + 1}", source, answers=self.reading.answers)
        name = as_text(lookup(row, columns.get("database", "database")), "database")
        evidence = lookup(row, columns.get("evidence", "evidence"))
        return self.ask(sample, self._find(name, source), str(evidence or ""))

    def ask(self, sample: Sample, databases: list[Path], evidence: str = "") -> Sample:
        """Return the sample with the schema of the first database in its prompt, and all databases in its row.

        Raises:
            BadRow: the first database cannot be read.
        """
        hint = f"\nHint: {evidence.strip()}" if evidence.strip() else ""
        question = sample.prompt.strip() if isinstance(sample.prompt, str) else sample.prompt
        prompt = wrapped_prompt(
            question, "{schema}\n\nQuestion: {prompt}{hint}", schema=self._schema(databases[0]), hint=hint
        )
        files = [str(path) for path in databases]
        return replace(sample, prompt=prompt, row={**sample.row, "databases": files})

    def _schema(self, path: Path) -> str:
        if path not in self._schemas:
            try:
                self._schemas[path] = schema_text(path, self.example_rows)
            except sqlite3.Error as error:
                raise BadRow(f"{path} is not a usable SQLite database: {error}", "database") from error
        return self._schemas[path]

    def _find(self, name: str, source: str) -> list[Path]:
        """Find the files of a database, starting with the one named after it.

        Raises:
            BadRow: there is none, or the name leads out of the folder.
        """
        if Path(name).name != name:
            raise BadRow(f"{name!r} is not the name of a database", "database")
        data_folder = Path(source.rpartition(":")[0]).parent
        known = [data_folder / name for name in DATABASE_FOLDERS]
        for folder in [expanded(self.databases)] if self.databases else known:
            nested = folder / name / f"{name}.sqlite"
            flat = folder / f"{name}.sqlite"
            if nested.is_file():
                others = sorted(path for path in nested.parent.glob("*.sqlite") if path != nested)
                return [path.absolute() for path in (nested, *others)]
            if flat.is_file():
                return [flat.absolute()]
        where = self.databases or f"{data_folder}/{{{','.join(DATABASE_FOLDERS)}}}"
        raise BadRow(f"no {name}.sqlite in {where}; `databases` names the folder", "database")
