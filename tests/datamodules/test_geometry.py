"""Geometry on the true columns of its data sets, as `datasets` writes them and as plain files."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lit_rlvr.datamodules import Geometry
from lit_rlvr.rewards import MathAnswer
from lit_rlvr.types import Completion, Sample


def png(width: int = 8, height: int = 4) -> dict[str, Any]:
    """An image as parquet files hold it."""
    file = BytesIO()
    Image.new("L", (width, height), 90).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{width}.png"}


GEO3K = {
    "images": [png()],
    "problem": "<image>Find $m\\angle 1$.",
    "answer": "48",
    "id": 7,
    "choices": ["38.0", "48.0", "58.0", "68.0"],
    "ground_truth": "B",
}
MATHVERSE = {
    "sample_index": "1",
    "problem_index": "1",
    "problem_version": "Vision Dominant",
    "question": "As shown in the figure, what is the angle?\nChoices:\nA:145°\nB:35°\nC:125°\nD:55°",
    "image": png(5, 5),
    "answer": "B",
    "question_type": "multi-choice",
    "metadata": {"split": "testmini", "source": "x", "subject": "Plane Geometry", "subfield": "Angle"},
    "query_wo": "...",
    "query_cot": "...",
    "question_for_eval": "...",
}
FREE = MATHVERSE | {
    "sample_index": "2",
    "question": "What is x?",
    "answer": "$2 \\sqrt{3}$",
    "question_type": "free-form",
}
TEXT_ONLY = MATHVERSE | {"sample_index": "3", "image": "", "problem_version": "Text Only"}
MATHVISION = {
    "id": "9",
    "question": "Which kite <image1> has the longest string?\n<image2>",
    "options": ["long", "short", "none"],
    "image": "images/9.jpg",
    "decoded_image": png(6, 6),
    "answer": "C",
    "solution": None,
    "level": 2,
    "subject": "metric geometry - length",
}


def load(path: Path, rows: list[dict[str, Any]]) -> list[Sample]:
    pq.write_table(pa.Table.from_pylist(rows), path / "train.parquet")
    return Geometry(train=str(path / "train.parquet")).load("train")


def test_geometry3k_is_read(tmp_path: Path) -> None:
    degrees = [GEO3K | {"answer": answer} for answer in ("48^\\circ", "48°", "48 degrees", "2 \\sqrt { 221 }")]
    first, *others = load(tmp_path, [GEO3K, *degrees])
    assert (first.prompt, first.answer, first.category) == ("<image>Find $m\\angle 1$.", "48", "")
    assert (first.options, first.images.sizes, first.images[0].mode) == ((), ((8, 4),), "RGB")
    assert [s.answer for s in others] == ["48", "48", "48", "2 \\sqrt { 221 }"]
    assert len({s.id for s in others}) == 4


def test_mathverse_is_read_by_version(tmp_path: Path) -> None:
    choice, free = load(tmp_path, [MATHVERSE, FREE])
    assert (choice.id, choice.answer, choice.category) == ("1", "B", "Vision Dominant")
    assert choice.options == ("145°", "35°", "125°", "55°") and choice.prompt == MATHVERSE["question"]
    assert choice.images.sizes == ((5, 5),) and choice.row["metadata"]["subject"] == "Plane Geometry"
    assert (free.answer, free.options) == ("$2 \\sqrt{3}$", ())


def test_mathverse_is_read_without_images(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(json.dumps([TEXT_ONLY]))
    (sample,) = Geometry(test=str(tmp_path / "test.json")).load("test")
    assert len(sample.images) == 0 and sample.category == "Text Only"


def test_mathvision_is_read_by_level(tmp_path: Path) -> None:
    drawn = MATHVISION | {"id": "10", "options": list("ABCDE"), "question": "Which?\n<image1>", "level": 5}
    value = MATHVISION | {"id": "11", "options": [], "answer": "12.5"}
    by_text = MATHVISION | {"id": "12", "answer": "short"}
    listed, letters, free, named = load(tmp_path, [MATHVISION, drawn, value, by_text])
    assert listed.prompt == "Which kite <image> has the longest string?\n<image2>\nA) long\nB) short\nC) none"
    assert (listed.answer, listed.category, listed.options) == ("C", "level 2", ("long", "short", "none"))
    assert letters.prompt == "Which?\n<image>" and (letters.category, letters.answer) == ("level 5", "C")
    assert (free.answer, free.options, named.answer) == ("12.5", (), "B")


def test_values_of_mathvision_agree_at_two_decimals() -> None:
    sample = Sample("x", "?", "3.14")
    said = {
        "\\boxed{\\pi}": (1, 0),
        "\\boxed{3.142}": (1, 0),
        "\\boxed{3.15}": (0, 0),
        "\\boxed{\\frac{157}{50}}": (1, 1),
    }
    for place, reward in enumerate((MathAnswer(decimals=2), MathAnswer())):
        values = [r.value for r in reward.score([(Completion(text, (1,), "stop"), sample) for text in said])]
        assert values == [wanted[place] for wanted in said.values()]
        reward.close()


def test_broken_rows_are_named(tmp_path: Path, caplog: Any) -> None:
    broken = [
        GEO3K | {"images": [{"bytes": b"broken", "path": "a.png"}]},
        GEO3K | {"images": []},
        GEO3K | {"answer": ""},
    ]
    samples = load(tmp_path, [GEO3K] * 27 + broken)
    assert len(samples) == 27
    (message,) = caplog.messages
    for part in (
        ":28: image: number 1 cannot be decoded",
        ":29: image: 1 <image> placeholders for 0 images",
        ":30: ans",
    ):
        assert f"train.parquet{part}" in message
