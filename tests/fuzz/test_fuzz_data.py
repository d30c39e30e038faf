"""Broken rows and images: a set that loads, or one line that names file and row."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import examples
from hypothesis import given, reject, strategies as st
from PIL import Image

from lit_rlvr.datamodules import (
    CodeProblems,
    Geometry,
    MedicalVQA,
    MultipleChoice,
    PromptDataModule,
    TextMath,
    TextToSQL,
)
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.errors import UserError

pytestmark = pytest.mark.slow

COLUMNS = (
    "question", "answer", "problem", "solution", "prompt", "reward_model", "image", "images", "options", "choices",
    "id", "level", "subject", "db_id", "SQL", "query", "evidence", "question_content", "public_test_cases", "metadata",
)  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["#### 7", "\\boxed{7}", "<image>", "<image><image>", "A", "\ud800", "\x00", "9" * 500]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*COLUMNS, "role", "content"]), inner),
    max_leaves=6,
)
ROWS = st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=5), VALUES, max_size=6)
LINES = ROWS.map(json.dumps) | st.text(max_size=60) | st.just("") | st.just("{") | st.just("[1, 2]")
MODULES = (TextMath, Geometry, MedicalVQA, TextToSQL, MultipleChoice, CodeProblems)


def load(kind: type[PromptDataModule], path: Path, **options: Any) -> None:
    """Everything is read, or refused in one line that names the file."""
    if kind is TextToSQL:
        options |= {"databases": str(path.parent)}
    try:
        samples = kind(train=str(path), reading=ReadingOptions(max_bad_rows=0.9), **options).load("train")
    except UserError as error:
        assert "\n" not in str(error) and path.name in str(error), str(error)
        return
    assert all(isinstance(sample.answer, str) and sample.source for sample in samples)
    for sample in samples:
        for image in sample.images:
            assert image.mode == "RGB"


@pytest.mark.parametrize("kind", MODULES)
@examples(20)
@given(lines=st.lists(LINES, min_size=1, max_size=6), ending=st.sampled_from(["\n", "\r\n"]))
def test_any_rows_of_text_files_load_or_are_refused(
    tmp_path: Path, kind: type[PromptDataModule], lines: list[str], ending: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ending.join(lines).encode(errors="surrogatepass"))
    load(kind, path)


@pytest.mark.parametrize("kind", MODULES)
@examples(8)
@given(rows=st.lists(ROWS, min_size=1, max_size=3))
def test_any_rows_of_parquet_files_load_or_are_refused(
    tmp_path: Path, kind: type[PromptDataModule], rows: list[dict[str, Any]]
) -> None:
    path = tmp_path / "rows.parquet"
    try:
        pq.write_table(pa.Table.from_pylist(rows), path)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, UnicodeError, AttributeError):
        reject()  # what cannot be written cannot be read; Hypothesis draws others, and fails if it finds too few
    load(kind, path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "arrow"])
@examples(10)
@given(content=st.binary(max_size=400))
def test_files_of_any_bytes_load_or_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content)
    load(TextMath, path)


def picture(kind: str) -> bytes:
    file = BytesIO()
    Image.effect_noise((40, 30), 80).convert("RGB").save(file, kind)
    return file.getvalue()


PICTURES = {kind: picture(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")}


@pytest.mark.parametrize("kind", PICTURES)
@examples(10)
@given(data=st.data())
def test_images_that_were_damaged(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(PICTURES[kind])
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8)
    ):
        content[place] = value
    end = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    good = {"bytes": PICTURES["PNG"], "path": "good.png"}
    rows = [
        {"images": [{"bytes": bytes(content[:end]), "path": "a"}], "problem": "<image>x?", "answer": "1"},
        {"images": [good], "problem": "<image>y?", "answer": "2"},
    ]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    load(Geometry, path)
