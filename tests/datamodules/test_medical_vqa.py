"""MedicalVQA on the true columns of its data sets, and its splits: nothing of the evaluation is trained on."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lit_rlvr.datamodules import MedicalVQA
from lit_rlvr.datamodules.base import EvaluationData
from lit_rlvr.datamodules.reading.images import ImageOptions
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.errors import UserError
from lit_rlvr.types import Sample

MR, CT, XRAY = "MR (Mag-netic Resonance Imaging)", "CT(Computed Tomography)", "X-Ray"


def picture(path: Path, shade: int = 0) -> str:
    """A file that holds its own image; equal shades are equal images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (8, 8), shade % 256)
    image.putpixel((0, 0), shade // 256)
    image.save(path)
    return path.name


def load_json(path: Path, rows: list[dict[str, Any]], **options: Any) -> list[Sample]:
    (path / "test.json").write_text(json.dumps(rows))
    return MedicalVQA(test=str(path / "test.json"), **options).load("test")


# layouts


HUATUO = {
    "image": ["images/a.png"],
    "question": "Which organ is shown?",
    "options": ["Liver", "Heart", "Spleen", "Lung"],
    "answer": "Spleen",
    "dataset": "OmniMedVQA",
    "subset": MR,
}


def test_huatuo_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    as_text = HUATUO | {"options": "['No', 'Yes']", "answer": "yes", "subset": "SLAKE", "dataset": "SLAKE"}
    two = HUATUO | {"image": ["images/a.png", "images/a.png"]}
    first, second, third = load_json(tmp_path, [HUATUO, as_text, two])
    assert first.prompt == "Which organ is shown?\nA) Liver\nB) Heart\nC) Spleen\nD) Lung"
    assert (first.answer, first.category, first.options) == ("C", "MRI", ("Liver", "Heart", "Spleen", "Lung"))
    assert (first.images.sizes, first.images[0].mode, len(third.images)) == (((8, 8),), "RGB", 2)
    assert (second.answer, second.options, second.category) == ("B", ("No", "Yes"), "SLAKE")


def test_rows_without_an_answer_are_bad(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    with pytest.raises(UserError, match=r"test.json:2: answer: '\?' is not one of the options"):
        load_json(tmp_path, [HUATUO, HUATUO | {"answer": "?"}])


def test_medvlm_r1_is_read(tmp_path: Path) -> None:
    problem = "Which organ is shown? A) Liver, B) Heart, C) Spleen, D) Lung"
    row = HUATUO | {"problem": problem, "solution": "C", "image": [picture(tmp_path / "b.png")]}
    (sample,) = load_json(tmp_path, [row])
    assert (sample.prompt, sample.answer, sample.category) == (problem, "C", "MRI")
    with pytest.raises(UserError, match="'E' is not the letter of one of 4 options"):
        load_json(tmp_path, [row | {"solution": "E"}])


def test_omnimedvqa_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "Images" / "SRC" / "a.png")
    row = {
        "question": "What is it?",
        "gt_answer": "No, it is healthy",
        "image_path": "Images/SRC/a.png",
        "option_A": "Fracture",
        "option_B": "No, it is healthy",
        "question_type": "Disease Diagnosis",
    }
    first, second = load_json(tmp_path, [row | {"modality_type": XRAY}, row | {"modality": CT}])
    assert (first.answer, first.options, first.category) == ("B", ("Fracture", "No, it is healthy"), "X-ray")
    assert second.category == "CT"


def test_slake_is_read_in_english_with_its_folder(tmp_path: Path) -> None:
    picture(tmp_path / "imgs" / "xmlab1" / "source.jpg")
    row = {"img_id": 1, "img_name": "xmlab1/source.jpg", "question": "What modality?", "answer": "MRI", "q_lang": "en",
           "location": "Abdomen", "modality": "MRI", "answer_type": "OPEN", "content_type": "Modality",
           "triple": ["vhead", "_", "_"], "qid": 11934}  # fmt: skip
    (sample,) = load_json(tmp_path, [(row | {"q_lang": "zh", "question": "\u4ec0\u4e48?", "qid": 5}), row])
    assert (sample.id, sample.prompt, sample.answer, sample.category) == ("11934", "What modality?", "MRI", "MRI")


def test_vqa_rad_and_path_vqa_are_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    image = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "a.png"}
    rows = [{"image": image, "question": q, "answer": a} for q, a in (("Is it?", "yes"), ("Where?", "left lung"))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    closed, open_ = MedicalVQA(train=str(tmp_path / "train.parquet")).load("train")
    assert (closed.prompt, closed.answer, open_.answer, open_.options) == ("Is it?", "yes", "left lung", ())


def test_pmc_vqa_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "figures" / "PMC1.jpg")
    row = {"Figure_path": "PMC1.jpg", "Question": "Which?", "Answer": "MRI", "Answer_label": "B"}
    row |= {"Choice A": " A:CT ", "Choice B": " B:MRI ", "Choice C": "C:PET", "Choice D": "D:X-ray"}
    with (tmp_path / "test.csv").open("w") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    data = MedicalVQA(test=str(tmp_path / "test.csv"), images=ImageOptions(folder=str(tmp_path / "figures")))
    (sample,) = data.load("test")
    assert (sample.answer, sample.options) == ("B", ("CT", "MRI", "PET", "X-ray"))
    assert sample.prompt.startswith("Which?\nA) CT\nB) MRI")


# splits


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """240 rows: 120 MRI, 60 CT, 60 X-ray; questions and images repeat, within and across modalities."""
    rows = []
    for i in range(240):
        kind = (MR, MR, CT, XRAY)[i % 4]
        picture(tmp_path / "images" / f"{i}.png", shade=i - i % 16 if i % 5 == 0 else i)  # copies under other names
        rows.append(HUATUO | {"image": [f"images/{i}.png"], "question": f"Question {i % 37}?", "subset": kind})
    rows += [HUATUO | {"image": ["images/missing.png"], "subset": "Fundus Photography"} for _ in range(60)]
    (tmp_path / "all.json").write_text(json.dumps(rows))
    return tmp_path / "all.json"


WANTED: dict[str, Any] = {"train_modalities": {"MRI": 30}, "eval_modalities": {"MRI": 15, "CT": 15, "X-ray": 15}}


def shared(train: list[Sample], others: list[Sample]) -> tuple[int, int]:
    """How many training rows have an image, and how many a question's text, of the others."""
    images = {s.images[0].tobytes() for s in others}
    texts = {s.row["question"] for s in others}
    return sum(s.images[0].tobytes() in images for s in train), sum(s.row["question"] in texts for s in train)


def test_the_split_by_modality_has_nothing_in_common(pool: Path) -> None:
    """Rows of other modalities are never opened: their missing image is no bad row."""
    data = MedicalVQA(train=str(pool), **WANTED)
    train, validation = data.load("train"), data.load("validation")
    assert Counter(s.category for s in train) == {"MRI": 30}
    assert Counter(s.category for s in validation) == {"MRI": 15, "CT": 15, "X-ray": 15}
    assert (shared(train, validation), data.load("test"), data.bad_rows["train"]) == ((0, 0), [], [])


def test_a_split_by_images_may_share_questions(pool: Path) -> None:
    data = MedicalVQA(train=str(pool), disjoint="image", train_modalities={"MRI": 60}, eval_modalities={"MRI": 40})
    images, questions = shared(data.load("train"), data.load("validation"))
    assert images == 0 and questions > 0


@pytest.mark.parametrize("disjoint", ["image", "question"])
def test_splits_follow_from_the_data_seed(pool: Path, monkeypatch: pytest.MonkeyPatch, disjoint: Any) -> None:
    def ids(seed: int) -> list[list[str]]:
        data = MedicalVQA(train=str(pool), seed=seed, disjoint=disjoint, **WANTED)
        return [[s.id for s in data.load(split)] for split in ("train", "validation")]  # type: ignore[arg-type]

    first = ids(0)
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert ids(0) == first
    other = ids(1)
    assert other[0] != first[0] and other[1] != first[1]


def test_a_test_file_of_its_own_keeps_its_rows_out_of_training(pool: Path, tmp_path: Path) -> None:
    rows = json.loads(pool.read_text())
    own = [
        rows[0] | {"problem": "Question 0? A) Liver", "solution": "C", "question": "Never asked before"},
        rows[6] | {"problem": "Question 6? A) Liver", "solution": "C", "image": ["images/9.png"]},
    ]
    (tmp_path / "own.json").write_text(json.dumps(own))
    data = MedicalVQA(train=str(pool), validation=str(tmp_path / "own.json"), train_modalities={"MRI": 60})
    train, validation = data.load("train"), data.load("validation")
    assert (len(validation), shared(train, validation), len(train)) == (2, (0, 0), 60)
    assert "Question 0?" in {s.row["question"] for s in train} and "Question 6?" not in {
        s.row["question"] for s in train
    }


def test_too_few_rows_are_an_error_that_says_where(pool: Path) -> None:
    with pytest.raises(UserError, match="eval_modalities:"):
        MedicalVQA(train=str(pool), train_modalities={"MRI": 1}, eval_modalities={"CT": 900}).load("validation")
    data = MedicalVQA(train=str(pool), train_modalities={"MRI": 119}, eval_modalities={"MRI": 60})
    with pytest.raises(
        UserError, match=r"train_modalities, without .*\(disjoint=question\): 119 rows of MRI are wanted"
    ):
        data.load("train")
    with pytest.raises(UserError, match=r"eval_modalities.CT: 0 must lie in"):
        MedicalVQA(eval_modalities={"CT": 0})


def test_limits_come_after_the_split(pool: Path) -> None:
    data = MedicalVQA(train=str(pool), reading=ReadingOptions(limit=7), evaluation=EvaluationData(limit=9), **WANTED)
    assert (len(data.load("train")), len(data.load("validation"))) == (7, 9)
    whole = MedicalVQA(train=str(pool), **WANTED)
    assert {s.id for s in data.load("validation")} <= {s.id for s in whole.load("validation")}
