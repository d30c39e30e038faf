"""Files, folders and hub names -> rows with their place."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.datamodules.reading.readers import SHIPPED, read_rows
from lit_rlvr.errors import UserError

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "é {x}\n2+2?", "answer": "4"}]


def write(path: Path, rows: list[dict] = ROWS, table: pa.Table | None = None) -> Path:
    """Write `rows`, or a table, in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows) if table is None else table
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        csv.write_csv(table, path)
    elif path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".arrow"])
def test_every_format_gives_the_same_rows_with_their_numbers(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"data{suffix}")
    rows = list(read_rows(str(path)))
    assert [row.value for row in rows] == ROWS
    assert [row.source for row in rows] == [f"{path}:1", f"{path}:2"]


def test_arrow_files_and_json_with_a_data_key_are_read(tmp_path: Path):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(tmp_path / "f.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "d.json").write_text(json.dumps({"data": ROWS}))
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name in ("f.arrow", "d.json", "lines.json"):
        assert [row.value for row in read_rows(str(tmp_path / name))] == ROWS


def test_broken_json_lines_are_bad_rows_with_their_line_number(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('\ufeff{"a": 1}\n\n{"a": \n[1]\n' + ("[" * 100_000) + '\n{"a": 2}\n')
    rows = list(read_rows(str(path)))
    assert [row.source.rpartition(":")[2] for row in rows] == [*"13456"]
    assert rows[0].value == {"a": 1} and rows[4].value == {"a": 2}
    assert [isinstance(row.value, BadRow) for row in rows] == [False, True, True, True, False]
    assert "broken JSON (Expecting value" in str(rows[1].value) and "got list" in str(rows[2].value)


def test_csv_with_quotes_newlines_long_cells_and_a_row_too_long(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text('\ufeffq,a\n"one, ""two""\nthree",2\n' + "x" * 200_000 + ",3\n1,2,3\n", encoding="utf-8")
    rows = list(read_rows(str(path)))
    assert rows[0].value == {"q": 'one, "two"\nthree', "a": "2"} and len(rows[1].value["q"]) == 200_000
    assert str(rows[2].value) == "row: 1 more fields than the header" and rows[2].source.endswith(":3")


TWICE = ['{"a": 1, "a": 1}', '{"b": [{"c": {"a": 1, "a": 2}}]}']


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_objects_with_a_key_twice_are_bad_rows_at_any_depth(tmp_path: Path, name: str):
    rows = ['{"a": 1, "b": {"a": 2}}', *TWICE, '{"a": {}}']
    (tmp_path / name).write_text("\n".join(rows) if name == "x.jsonl" else f"[{', '.join(rows)}]")
    found = list(read_rows(str(tmp_path / name)))
    assert found[0].value == {"a": 1, "b": {"a": 2}} and found[3].value == {"a": {}}
    assert [str(row.value) for row in found[1:3]] == ["row: the key 'a' stands twice in a JSON object"] * 2
    assert [row.source for row in found[1:3]] == [f"{tmp_path / name}:2", f"{tmp_path / name}:3"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".arrow"])
@pytest.mark.parametrize("nested", [False, True])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, suffix: str, nested: bool):
    table = pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"])], names=["q", "q"])
    if nested and suffix != ".csv":
        table = pa.Table.from_arrays([table.to_struct_array().combine_chunks()], names=["row"])
    path = write(tmp_path / f"x{suffix}", table=table)
    with pytest.raises(UserError, match=rf"^{path}: cannot be read as {suffix} \(.*") as error:
        list(read_rows(str(path)))
    message = str(error.value)
    assert "duplicate field names" in message if nested and suffix != ".csv" else "two columns are named 'q'" in message


def test_a_folder_gives_the_files_of_the_split(tmp_path: Path):
    write(tmp_path / "data" / "train-00001-of-00002.parquet", [{"q": "c"}])
    write(tmp_path / "data" / "train-00000-of-00002.parquet", [{"q": "a"}, {"q": "b"}])
    write(tmp_path / "data" / "dev.jsonl", [{"q": "v"}])
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert [row.value["q"] for row in read_rows(str(tmp_path), "train")] == ["a", "b", "c"]
    assert [row.value["q"] for row in read_rows(str(tmp_path), "validation")] == ["v"]
    assert [row.value["q"] for row in read_rows(f"{tmp_path}:validation", "train")] == ["v"]
    with pytest.raises(UserError, match="no file for the split 'test', only for train, validation"):
        list(read_rows(str(tmp_path), "test"))


def test_a_folder_of_other_names_is_read_whole(tmp_path: Path):
    write(tmp_path / "b.jsonl", [{"q": "2"}])
    write(tmp_path / "a.csv", [{"q": "1"}])
    assert [row.value["q"] for row in read_rows(str(tmp_path), "test")] == ["1", "2"]


def test_saved_datasets_keep_their_order_and_leave_images_undecoded(tmp_path: Path):
    image = {"bytes": b"not an image", "path": None}
    features = datasets.Features({"q": datasets.Value("string"), "image": datasets.Image()})
    data = datasets.Dataset.from_list([{"q": str(i), "image": image} for i in range(5)], features=features)
    data.select([3, 1]).save_to_disk(str(tmp_path / "one"))
    rows = list(read_rows(str(tmp_path / "one")))
    assert [row.value for row in rows] == [{"q": "3", "image": image}, {"q": "1", "image": image}]
    assert rows[1].source == f"{tmp_path / 'one'}:2"
    datasets.DatasetDict({"train": data, "extra": data.select([4])}).save_to_disk(str(tmp_path / "dict"))
    assert len(list(read_rows(str(tmp_path / "dict"), "train"))) == 5
    assert [row.value["q"] for row in read_rows(f"{tmp_path / 'dict'}:extra")] == ["4"]
    with pytest.raises(UserError, match="no split 'test', it has train, extra; write FOLDER:SPLIT"):
        list(read_rows(str(tmp_path / "dict"), "test"))


def test_shipped_files_are_found_by_name():
    rows = list(read_rows("package:svamp/train.jsonl"))
    assert len(rows) == 300 and rows[0].source == f"{SHIPPED / 'svamp' / 'train.jsonl'}:1"
    with pytest.raises(UserError, match=r"no such file or folder, did you mean '.*svamp/train.jsonl'"):
        list(read_rows("package:svamp/trian.jsonl"))


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path):
    write(tmp_path / "gsm8k" / "train.jsonl")
    with pytest.raises(UserError, match=r"gsm8k/trian.jsonl: no such file.*did you mean '.*gsm8k/train.jsonl'"):
        list(read_rows(str(tmp_path / "gsm8k" / "trian.jsonl")))
    with pytest.raises(UserError, match=r"gsm8/train.jsonl: no such file.*did you mean '.*gsm8k'"):
        list(read_rows(str(tmp_path / "gsm8" / "train.jsonl")))
    with pytest.raises(UserError, match=r"zzz.csv: no such file or folder$"):
        list(read_rows(str(tmp_path / "zzz.csv")))
    with pytest.raises(UserError, match=r"^~no_such_user/x.csv: there is no home folder ~no_such_user; write"):
        list(read_rows("~no_such_user/x.csv"))


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("latin.jsonl", '{"q": "caf\xe9"}\n'.encode("latin-1"), "not UTF-8"),
        ("latin.csv", "q,a\ncaf\xe9,1\n".encode("latin-1"), "not UTF-8"),
        ("broken.json", b'{"data": [1,', "broken JSON"),
        ("list.jsonl", b'[{"q": "1"},\n{"q": "2"}]', r"begins with '\[.*write one object a line, or .* a .json file"),
        ("pretty.jsonl", b'{\n  "q": "1"\n}\n', "begins with '{', but a line of JSON Lines is one whole object"),
        ("dict.json", b'{"rows": []}', "expected a list of rows"),
        ("twice.json", b'{"data": [], "data": []}', "the key 'data' stands twice"),
        ("deep.json", b"[" * 100_000, "broken JSON"),
        ("cut.parquet", b"PAR1 and no more", "cannot be read as .parquet"),
        ("cut.arrow", b"no arrow", "cannot be read as .arrow"),
        ("notes.txt", b"hello", "unknown file type"),
        ("images.zip", b"PK", "unknown file type.*; unpack an archive first"),
    ],
)
def test_files_that_cannot_be_read_are_one_line_with_their_name(
    tmp_path: Path, name: str, content: bytes, message: str
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(read_rows(str(tmp_path / name)))
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


def test_a_split_of_a_file_and_an_empty_folder_are_refused(tmp_path: Path):
    path = write(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="a file has no splits, drop ':train'"):
        list(read_rows(f"{path}:train"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no .jsonl, .*file in this folder"):
        list(read_rows(str(tmp_path / "empty")))


def test_hub_names_carry_config_and_split(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *args, **kwargs: None)
    for location in ("openai/gsm8k@main:test", "org/name", "squad", "a/b:train[:10]"):
        assert [row.value for row in read_rows(location, "validation")] == ROWS
    assert asked == [
        ("openai/gsm8k", "main", "test"),
        ("org/name", None, "validation"),
        ("squad", None, "validation"),
        ("a/b", None, "train[:10]"),
    ]
    assert next(read_rows("org/name")).source == "org/name:1"


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)
    with pytest.raises(UserError) as error:
        list(read_rows("org/none"))
    assert str(error.value) == (
        "org/none: neither a file or folder here nor a reachable hub data set (ConnectionError: no route)"
    )
    with pytest.raises(UserError, match=r"\(ConnectionError: no route\); if it is a prompt, give rows as dicts of col"):
        list(read_rows("text"))


def test_a_cached_data_set_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "openai___gsm8k").mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *args, **kwargs: pytest.fail("asked the hub"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_list(ROWS))
    assert [row.value for row in read_rows("openai/gsm8k@main", "train")] == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_tabs_and_compressed_files_are_read(tmp_path: Path, suffix: str):
    if suffix == ".tsv":
        path = tmp_path / "data.tsv"
        path.write_text('question\tanswer\n1+1?\t2\n"\u00e9 {x}\n2+2?"\t4\n', encoding="utf-8")
    else:
        path = write(tmp_path / f"data{suffix}")
    packed = tmp_path / "train" / f"data{suffix}.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        assert [row.value for row in read_rows(str(file))] == ROWS
    assert [row.source for row in read_rows(str(packed.parent))] == [f"{packed}:1", f"{packed}:2"]
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(UserError, match=rf"data{suffix}.gz: cannot be read as {suffix}.gz \("):
        list(read_rows(str(packed)))


def test_what_is_no_file_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A pipe, which would be waited for without end, links that lead nowhere, and URLs."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jsonl")
    Path("loop.jsonl").symlink_to("loop.jsonl")
    Path("broken.jsonl").symlink_to("gone.jsonl")
    Path("folder").mkdir()
    os.mkfifo("folder/train.jsonl")
    for location, said in {
        "pipe.jsonl": "pipe.jsonl: is a pipe or a device, not a file; write its content to a file",
        "folder": "folder/train.jsonl: is a pipe or a device, not a file; write its content to a file",
        "loop.jsonl": "loop.jsonl: is a link that leads back to itself",
        "broken.jsonl": "broken.jsonl: is a link to gone.jsonl, which is not there",
        "https://a.b/c.jsonl": "https://a.b/c.jsonl: URLs are not read; download the file and give its path",
        "s3://a/c.parquet": "s3://a/c.parquet: URLs are not read; download the file and give its path",
        "https://huggingface.co/datasets/openai/gsm8k/tree/main": "https://huggingface.co/datasets/openai/gsm8k/tree/"
        "main: URLs are not read; give the hub name, openai/gsm8k",
    }.items():
        with pytest.raises(UserError) as error:
            list(read_rows(location))
        assert str(error.value) == said
