"""Generated small databases with questions about them: the smoke recipe's task."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlvr.common.files import cache_folder, write_atomically
from lit_rlvr.common.paths import expanded, shown
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.datamodules.reading.split import Split
from lit_rlvr.datamodules.text_to_sql import TextToSQL
from lit_rlvr.datamodules.toys.generated import GeneratedDataModule
from lit_rlvr.errors import UserError
from lit_rlvr.types import Sample

TABLES = (
    "actors", "albums", "apples", "bikes", "birds", "boats", "books", "bridges", "buses", "cakes", "cameras", "cars",
    "cats", "chairs", "cities", "clocks", "coins", "dogs", "farms", "films", "flowers", "games", "guitars", "hats",
    "horses", "hotels", "houses", "islands", "lakes", "lamps", "maps", "parks", "phones", "planes", "poems", "rivers",
    "roads", "schools", "ships", "shoes", "shops", "songs", "stars", "teams", "towers", "toys", "trains", "trees",
)  # fmt: skip
PERSON_NAMES = (
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gus",
    "Hana",
    "Ivo",
    "June",
    "Kai",
    "Lea",
    "Max",
    "Nora",
    "Otto",
)
COLUMN_KINDS = {
    "color": ("black", "blue", "green", "red", "white"),
    "country": ("Chile", "France", "India", "Japan", "Kenya"),
    "grade": ("A", "B", "C", "D"),
    "shape": ("long", "round", "square", "tall"),
}
NUMBERS = ("age", "length", "points", "price", "size", "weight", "year")


class SQLTable(NamedTuple):
    """A table `name` with the columns `name` (text), `kind` (text, few values) and `number` (distinct integers)."""

    name: str
    kind: str
    number: str
    rows: list[tuple[str, str, int]]


class SyntheticSQL(GeneratedDataModule, TextToSQL):
    """Questions about generated tables, from counting rows to grouping them, with some tables held out for validation.

    The class writes the databases to `folder`; the same seed gives the same databases. The categories of the questions
    are count, list, aggregate, filter, top and group. For warm starts, a row's `turns` are a call of `SQLShell`'s tool
    and the answer.

    Args:
        tables: number of tables; each has eleven questions.
        held_out: how many of the tables form the validation set, drawn by `seed`.
        folder: where the databases are written; by default in the user's cache folder.
        reading: which rows are used, and how; no bad row is tolerated by default.
    """

    def __init__(
        self,
        tables: int = 40,
        held_out: int = 10,
        folder: str | None = None,
        reading: ReadingOptions = ReadingOptions(max_bad_rows=0.0),  # noqa: B008
        **kwargs: Any,
    ) -> None:
        super().__init__(databases=None, reading=reading, **kwargs)
        if not 0 <= held_out < tables <= len(TABLES):
            raise UserError(f"tables={tables}, held_out={held_out}: at most {len(TABLES)}, one must be left to train")
        self.tables = tables
        self.held_out = held_out
        if folder:
            parent = expanded(folder)
        else:
            parent = cache_folder() / "synthetic_sql"
        self.folder = parent / f"seed-{self.seed}"

    def rows(self, split: Split) -> Iterator[Sample]:
        """Yield questions about the training tables or the held-out tables; there is no test set."""
        held_out = set(random.Random(derive_seed("split", self.seed)).sample(TABLES[: self.tables], self.held_out))
        for name in TABLES[: self.tables]:
            if split == ("validation" if name in held_out else "train"):
                table = make_table(name, derive_seed("synthetic_sql", self.seed, name))
                path = write_table(table, self.folder / f"{name}.sqlite")
                for number, (category, question, sql) in enumerate(questions(table), 1):
                    turns = {"turns": [f"<call>query({sql!r})</call>", sql]}
                    yield self.ask(Sample(f"{name}:{number}", question, sql, row=turns, category=category), [path])


def make_table(name: str, seed: int) -> SQLTable:
    """Draw a table of 6 to 12 rows by seed."""
    draw = random.Random(seed)
    kind = draw.choice(sorted(COLUMN_KINDS))
    number = draw.choice(NUMBERS)
    count = draw.randint(6, 12)
    columns = (
        draw.sample(PERSON_NAMES, count),
        draw.choices(COLUMN_KINDS[kind], k=count),
        draw.sample(range(10, 100), count),
    )
    return SQLTable(name, kind, number, list(zip(*columns, strict=True)))


def questions(table: SQLTable) -> Iterator[tuple[str, str, str]]:
    """Yield (category, question, query) from easy to hard."""
    name, kind, number, rows = table
    middle = sorted(value for _, _, value in rows)[len(rows) // 2]
    yield "count", f"How many rows are in {name}?", f"SELECT COUNT(*) FROM {name}"
    for column in ("name", kind, number):
        yield "list", f"List the {column} of all {name}.", f"SELECT {column} FROM {name}"
    for word, function in (("largest", "MAX"), ("smallest", "MIN"), ("average", "AVG")):
        yield "aggregate", f"What is the {word} {number} in {name}?", f"SELECT {function}({number}) FROM {name}"
    yield (
        "filter",
        f"List the name of all {name} with a {number} above {middle}.",
        f"SELECT name FROM {name} WHERE {number} > {middle}",
    )
    for word, order in (("largest", "DESC"), ("smallest", "ASC")):
        yield (
            "top",
            f"Which name in {name} has the {word} {number}?",
            f"SELECT name FROM {name} ORDER BY {number} {order} LIMIT 1",
        )
    yield (
        "group",
        f"How many rows of {name} are there for each {kind}? List {kind} and count.",
        f"SELECT {kind}, COUNT(*) FROM {name} GROUP BY {kind}",
    )


def write_table(table: SQLTable, path: Path) -> Path:
    """Write the table as a SQLite file atomically, so that other processes never see half of it; keep an equal file.

    Raises:
        UserError: it cannot be written.
    """
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(f"CREATE TABLE {table.name} (name TEXT, {table.kind} TEXT, {table.number} INTEGER)")
        database.executemany(f"INSERT INTO {table.name} VALUES (?, ?, ?)", table.rows)
        database.commit()
        content = database.serialize()
    try:
        if not path.is_file() or path.read_bytes() != content:  # the folder may be one that can only be read
            write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f"data.folder: {shown(path.parent)} cannot be written: {error.strerror}; give a folder that can be, or set "
            "LIT_RLVR_CACHE to one"
        ) from error
    return path
