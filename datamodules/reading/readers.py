"""Readers of files, folders and hub data sets, which yield rows with their sources; and samples as rows."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lit_rlvr.common.arguments import type_text
from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.packages import HUB_SECONDS, expect_hub
from lit_rlvr.common.paths import expanded, why_not_a_file
from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.errors import UserError
from lit_rlvr.media import Video
from lit_rlvr.types import Sample

HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<config>[\w.-]+))?(:(?P<split>.+))?")
"""`name` or `org/name`, `@config`, `:split`."""

GIVE_ROWS = "give rows as dicts of columns, such as {'prompt': ..., 'answer': ...}"
"""What to do where a text stands in the place of a row."""


def load_from_hub(location: str, split: str) -> Any:
    """Load a `datasets.Dataset` from the local cache or the hub.

    Args:
        location: a name that `HUB_NAME` matches.
        split: the split to load if the location names none.

    Raises:
        UserError: loading failed; the message gives the reason.
    """
    import datasets
    from huggingface_hub import HfApi

    expect_hub(location)
    match = HUB_NAME.fullmatch(location)
    assert match is not None
    try:
        if not _is_cached(match["name"], datasets.config.HF_DATASETS_CACHE):
            HfApi().dataset_info(match["name"], timeout=HUB_SECONDS)  # one request, where `load_dataset` retries
        return datasets.load_dataset(match["name"], match["config"], split=match["split"] or split)
    except Exception as error:  # network, access, missing config or split: every cause is reported
        reason = " ".join(str(error).split())[:300]
        remedy = ""
        if "/" not in match["name"]:
            remedy = f"; if it is a prompt, {GIVE_ROWS}"
        raise UserError(
            f"{location}: neither a file or folder here nor a reachable hub data set "
            f"({type(error).__name__}: {reason}){remedy}"
        ) from error


def _is_cached(name: str, cache: Any) -> bool:
    """Return True if `datasets` has a folder of this name in its cache."""

    def bare(text: str) -> str:
        return text.lower().replace("_", "")

    return cache.is_dir() and bare(name.replace("/", "___")) in {bare(folder.name) for folder in cache.iterdir()}


SHIPPED = Path(__file__).parents[1] / "data"
"""The folder that `package:` stands for."""

SPLITS = ("train", "validation", "test")

Value = dict[str, Any] | BadRow


class SourceRow(NamedTuple):
    """One row and its source.

    Args:
        value: column -> cell, or a `BadRow` that says why the row cannot be read.
        source: the file or data set it comes from, and its number there from 1 (JSON Lines: the line; CSV: without the
            header): "file:row".
    """

    value: Value
    source: str


class GivenRows:
    """Rows of a data set that were given in Python, in place of the file that a config names.

    Args:
        rows: dicts of columns, or a `datasets.Dataset`.
        split: the set's name, for messages.

    Raises:
        UserError: they are a mapping instead.

    Attributes:
        file: the file that a run writes them to, so that its `config.yaml` can name it.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], split: str) -> None:
        self.name = self.file = f"data.{split}"
        if isinstance(rows, Mapping):
            raise UserError(f"{self.name}: give the rows of one set, such as data[{next(iter(rows), split)!r}]")
        if hasattr(rows, "with_format"):
            self.rows = rows
        else:
            self.rows = list(rows)

    def __fspath__(self) -> str:
        return self.file

    def read(self) -> Iterator[SourceRow]:
        """Yield the rows; those of a `Dataset` without a transform in their Arrow form."""
        kept = getattr(self.rows, "format", None) or {}
        if hasattr(self.rows, "with_format") and kept.get("type") != "custom":
            yield from _read_dataset(self.rows, self.name)
            return
        for number, row in enumerate(self.rows, 1):
            if not isinstance(row, Mapping):
                raise UserError(f"{self.name}:{number}: a row is a dict of columns, not {type_text(row)}")
            yield SourceRow(dict(row), f"{self.name}:{number}")

    def write(self) -> None:
        """Write the rows to `file`."""
        rows = (cell_to_json(row.value) for row in self.read())
        lines = []
        for row in rows:
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_atomically(Path(self.file), "".join(lines))


def read_rows(location: str | GivenRows, split: str = "train") -> Iterator[SourceRow]:
    """Yield all rows of a location.

    Args:
        location: a file of a type in `FORMATS`, a folder of such files, a folder saved by `datasets` (`save_to_disk`),
            `package:FILE` for a file that ships with lit-rlvr, or a hub name `org/name[@config][:split]`. A folder may
            end in `:split` too. Or rows that were given in Python.
        split: which split to read if the location has several and names none.

    Raises:
        UserError: there is nothing at the location, or it cannot be read at all.
    """
    if isinstance(location, GivenRows):
        yield from location.read()
        return
    if location.startswith("package:"):
        location = str(SHIPPED / location.removeprefix("package:"))
    if "://" in location:
        name = re.search(r"(?:huggingface\.co|hf-mirror\.com|hf:/)/datasets/([\w.-]+/[\w.-]+)", location)
        if name:
            remedy = f"give the hub name, {name[1]}"
        else:
            remedy = "download the file and give its path"
        raise UserError(f"{location}: URLs are not read; {remedy}")
    path = expanded(location)
    named_split = None
    if not path.exists() and ":" in location:
        folder, _, named_split = location.rpartition(":")
        path = expanded(folder)
    if path.is_dir():
        yield from _read_folder(path, named_split or split)
    elif path.exists():
        if named_split:
            raise UserError(f"{path}: a file has no splits, drop {':' + named_split!r}")
        yield from _read_file(path)
    elif reason := why_not_a_file(path):
        raise UserError(f"{path}: {reason}")
    elif HUB_NAME.fullmatch(location) and file_type(path) not in FORMATS and not location.startswith("."):
        yield from _read_dataset(load_from_hub(location, split), location)
    else:
        raise UserError(_missing(expanded(location)))


def _read_folder(folder: Path, split: str) -> Iterator[SourceRow]:
    """Read a `save_to_disk` folder, or all data files of the split below a folder."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        import datasets

        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise UserError(
                    f"{folder}: no split {split!r}, it has {', '.join(map(str, saved))}; write FOLDER:SPLIT"
                )
            yield from _read_dataset(saved[split], f"{folder}/{split}")
        else:
            yield from _read_dataset(saved, str(folder))
        return
    files = []
    try:
        inside = sorted(folder.rglob("*"))
    except OSError as error:  # such as a folder that ends while it is read
        raise UserError(f"{folder}: cannot be read: {error.strerror or error}; give the folder of the data") from error
    for file in inside:
        if file_type(file) in FORMATS and not file.name.startswith((".", "dataset_info")):
            files.append(file)
    files_of_split = []
    for file in files:
        if _split_of(file, folder) == split:
            files_of_split.append(file)
    if not files_of_split:
        others = sorted({_split_of(file, folder) for file in files} - {""})
        if not files:
            raise UserError(f"{folder}: no {', '.join(FORMATS)} file in this folder")
        if others:
            raise UserError(f"{folder}: no file for the split {split!r}, only for {', '.join(others)}")
    for file in files_of_split or files:
        yield from _read_file(file)


def _split_of(file: Path, folder: Path) -> str:
    """Return the split that the file's name begins with, or else one of its folders below `folder`; "" if none does.

    Examples: "train-00000-of-00002.parquet", "test.jsonl", "test2.jsonl", "train/metadata.jsonl".
    """
    for part in reversed(file.relative_to(folder).parts):
        head = re.split(r"[-_.]", part)[0].lower().rstrip("0123456789")
        head = {"val": "validation", "valid": "validation", "dev": "validation"}.get(head, head)
        if head in SPLITS:
            return head
    return ""


def _read_dataset(data: Any, file: str) -> Iterator[SourceRow]:
    """Yield the rows of a `datasets.Dataset` in their Arrow form: images stay {"bytes", "path"}, undecoded."""
    for number, value in _batches(data.with_format("arrow").iter(batch_size=256)):
        yield SourceRow(value, f"{file}:{number}")


def _read_file(path: Path) -> Iterator[SourceRow]:
    """Read one file by its suffix."""
    read = FORMATS.get(file_type(path))
    reason = why_not_a_file(path)
    if reason:
        raise UserError(f"{path}: {reason}")
    if read is None:
        if {".zip", ".tar", ".tgz"} & {*path.suffixes}:
            hint = "; unpack an archive first"
        else:
            hint = ""
        raise UserError(f"{path}: unknown file type, known types are {', '.join(FORMATS)}{hint}")
    try:
        for number, value in read(path):
            yield SourceRow(value, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}: {error.object[error.start : error.end]!r})") from error
    except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as {file_type(path)} ({' '.join(str(error).split())})") from error


def file_type(path: Path) -> str:
    """Return the suffix of a file, such as ".jsonl", with that of the compressed file: ".jsonl.gz"."""
    if path.suffix == ".gz":
        return "".join(path.suffixes[-2:])
    return path.suffix


def _open(path: Path, newline: str | None = None) -> TextIO:
    """Open a text file, compressed or not."""
    opened = gzip.open if path.suffix == ".gz" else open
    return cast(TextIO, opened(path, "rt", encoding="utf-8-sig", newline=newline))


def _jsonl(path: Path) -> Iterator[tuple[int, Value]]:
    """Read one JSON object per line; skip blank lines; yield a bad row for a broken line."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if not text:
                continue
            if number == 1 and (text[0] == "[" or text == "{"):
                raise UserError(
                    f"{path}: begins with {text[:20]!r}, but a line of JSON Lines is one whole object; write one "
                    "object a line, or a list of them to a .json file"
                )
            try:
                yield number, _object(json.loads(line, object_pairs_hook=_unique_keys))
            except (ValueError, RecursionError) as error:
                yield number, BadRow(f"broken JSON ({error})")


def _json(path: Path) -> Iterator[tuple[int, Value]]:
    """Read a list of objects, {"data": [...]}, or JSON Lines in a .json file."""
    with _open(path) as file:
        text = file.read()
    try:
        rows = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _jsonl(path)
            return
        raise UserError(f"{path}: broken JSON ({error})") from error
    if isinstance(rows, BadRow):
        raise UserError(f"{path}: {rows.reason}")
    if isinstance(rows, dict):
        rows = rows.get("data")
    if not isinstance(rows, list):
        raise UserError(f'{path}: expected a list of rows or {{"data": [...]}}; JSON Lines go into a .jsonl file')
    for number, row in enumerate(rows, 1):
        yield (number, _object(row))


def _csv(path: Path, delimiter: str = ",") -> Iterator[tuple[int, Value]]:
    """Read values with a header, separated by commas or another character."""
    csv.field_size_limit(sys.maxsize)  # base64 images are longer than the default of 128 KiB
    with _open(path, newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        _check_names(name for name in reader.fieldnames or () if name)
        for number, row in enumerate(reader, 1):
            extra = row.pop(None, None)
            yield number, BadRow(f"{len(extra)} more fields than the header") if extra else row


def _parquet(path: Path) -> Iterator[tuple[int, Value]]:
    with pq.ParquetFile(path) as file:
        yield from _batches(file.iter_batches(batch_size=256))


def _arrow(path: Path) -> Iterator[tuple[int, Value]]:
    """Read Arrow IPC, as a stream (which `datasets` writes) or as a file."""
    with pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            table = pa.ipc.open_file(source).read_all()
        else:
            table = pa.ipc.open_stream(source).read_all()
        yield from _batches(table.to_batches(max_chunksize=256))


def _batches(batches: Any) -> Iterator[tuple[int, Value]]:
    numbers = count(1)
    for batch in batches:
        _check_names(batch.schema.names)
        for value in batch.to_pylist():
            yield (next(numbers), value)


def _check_names(names: Iterable[str]) -> None:
    """Refuse a file in which two columns have the same name, as a row keeps only one of them.

    Raises:
        ValueError: `_read_file` turns it into an error with the file's name.
    """
    twice = []
    for name, times in Counter(names).items():
        if times > 1:
            twice.append(name)
    if twice:
        raise ValueError(f"two columns are named {twice[0]!r}; rename one of them")


def _unique_keys(pairs: list[tuple[str, Any]]) -> Value:
    """Make a JSON object; make a bad row if a key stands twice in it, where JSON would silently drop the first one."""
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    counts = Counter(key for key, _ in pairs)
    twice = next(key for key, count in counts.items() if count > 1)
    return BadRow(f"the key {twice!r} stands twice in a JSON object")


def _object(value: Any) -> Value:
    """Return a JSON object as a row; return a bad row for any other value, or the bad row that stands in it."""
    if not isinstance(value, dict | BadRow):
        return BadRow(f"expected a JSON object, got {type(value).__name__}")
    inside = [value]
    for item in inside:  # grows
        if isinstance(item, BadRow):
            return item
        if isinstance(item, dict):
            inside += item.values()
        elif isinstance(item, list):
            inside += item
    return value


def _missing(path: Path) -> str:
    """Return the error message for a missing path, with the most similar existing name."""
    parent = path.parent
    name = path.name
    while not parent.exists():
        parent, name = parent.parent, parent.name
    if parent.is_dir():
        nearest = get_close_matches(name, sorted(p.name for p in parent.iterdir()), 1)
    else:
        nearest = []
    return f"{path}: no such file or folder" + (f", did you mean {str(parent / nearest[0])!r}?" if nearest else "")


FORMATS: dict[str, Callable[[Path], Iterator[tuple[int, Value]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
}
FORMATS |= {f"{suffix}.gz": FORMATS[suffix] for suffix in (".jsonl", ".json", ".csv", ".tsv")}
"""Readers by suffix."""

TEXT_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
"""Files whose cells are all text, so that 2 and "2" look the same."""


def as_row(sample: Sample, from_file: bool, folder: Path) -> dict[str, Any]:
    """Return a sample as a row of JSON.

    Args:
        sample: the sample.
        from_file: True for a sample from a file: return that file's row again, for the same DataModule and options,
            with images as base64 text. Any other sample gets the columns prompt, answer, image, video, id, category and
            options, which every DataModule reads with `columns`.
        folder: the folder of the file that gets the row; relative paths of media start from it.
    """
    sources = getattr(sample.images, "sources", sample.images)
    row = {}
    for name, cell in sample.row.items():
        row[str(name)] = cell_to_json(cell)
    if from_file and row:
        return _with_moved_media(row, sample, folder)
    images = []
    for i, x in enumerate(sources):
        if not isinstance(x, Video):
            images.append(cell_to_json(sample.images[i]))
    videos = []
    for source in sources:
        if isinstance(source, Video):
            videos.append(cell_to_json(source.frames))
    fields = {
        "id": sample.id,
        "prompt": sample.prompt,
        "answer": sample.references if sample.aliases else sample.answer,
        "image": images,
        "video": videos,
        "category": sample.category,
        "options": sample.options,
    }
    given = {}
    for name, cell in fields.items():
        if cell:
            given[name] = cell
    return _with_moved_media(row | given, sample, folder)


def _with_moved_media(row: dict[str, Any], sample: Sample, folder: Path) -> dict[str, Any]:
    """Return a row whose relative paths of media start from `folder` instead of its file's, without `images.folder`."""
    sources = []
    for x in getattr(sample.images, "sources", ()):
        if isinstance(x, Video):
            sources.append(x.frames)
        else:
            sources.append(x)
    files: list[Any] = []
    for source in sources:
        if isinstance(source, tuple):
            files += source
        else:
            files.append(source)
    paths = []
    for file in files:
        if isinstance(file, str | Path):
            paths.append(Path(file))

    def moved(cell: Any) -> Any:
        if isinstance(cell, Mapping):
            return {name: moved(value) for name, value in cell.items()}
        if isinstance(cell, list):
            return [moved(value) for value in cell]
        if isinstance(cell, str) and cell and not Path(cell).is_absolute():
            for path in paths:
                if path.parts[-len(Path(cell).parts) :] == Path(cell).parts:
                    return os.path.relpath(path, folder)
        return cell

    stays = not paths or sample.images.options.folder is not None  # type: ignore[attr-defined]
    if stays:
        return row
    return {name: moved(cell) for name, cell in row.items()}


def cell_to_json(cell: Any) -> Any:
    """Convert a cell to a JSON value."""
    if isinstance(cell, Image.Image):
        file = BytesIO()
        cell.save(file, format="PNG")
        cell = file.getvalue()
    if isinstance(cell, bytes):
        return base64.b64encode(cell).decode()
    if isinstance(cell, Mapping):
        return {str(name): cell_to_json(value) for name, value in cell.items()}
    if isinstance(cell, list | tuple):
        return [cell_to_json(value) for value in cell]
    if cell is None or isinstance(cell, bool | int | float | str):
        return cell
    return str(cell)
