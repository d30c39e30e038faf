"""`lit-rlvr split`: the files hold the rows that training and validation see, and are read as they were."""

import json
from pathlib import Path

from PIL import Image
from tiny_runs import CLI

from lit_rlvr.commands.split import write_split
from lit_rlvr.datamodules import MedicalVQA


def test_the_rows_of_each_set(run_folder: Path, lit_rlvr: CLI) -> None:
    data = [{"question": f"Is {i} odd?", "answer": f"#### {i}"} for i in range(12)]
    (run_folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    source = ("--data", "TextMath", "--data.init_args.train", "data.jsonl", "--data.init_args.validation_split", 3)
    command = ("split", "--config", "tiny.yaml", *source, "--out", "parts")
    done = lit_rlvr(*command)
    assert done.status == 0 and done.out.split() == ["parts/train.jsonl", "parts/validation.jsonl"], done.err
    parts = [[json.loads(line) for line in Path(path).read_text().splitlines()] for path in done.out.split()]
    assert [len(part) for part in parts] == [9, 3]
    assert sorted(row["question"] for part in parts for row in part) == sorted(row["question"] for row in data)
    lit_rlvr(*command, status=2, says="--out: parts/train.jsonl exists; choose another name")


def test_images_are_found_from_the_new_folder(tmp_path: Path) -> None:
    rows = []
    for i in range(6):
        place = f"images/MRI/{i}.png"
        (tmp_path / "raw/images/MRI").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 30), (i, 0, 0)).save(tmp_path / "raw" / place)
        row = {"image": [place], "question": f"Which {i}?", "options": ["a", "b"], "answer": "b", "subset": "MRI"}
        rows.append(json.dumps(row))
    (tmp_path / "raw/all.jsonl").write_text("\n".join(rows))
    data = MedicalVQA(train=str(tmp_path / "raw/all.jsonl"), train_modalities={"MRI": 2}, eval_modalities={"MRI": 3})
    paths = write_split(data, tmp_path / "split")
    assert [path.name for path in paths] == ["train.jsonl", "validation.jsonl"]
    for path, split in zip(paths, ("train", "validation"), strict=True):
        before = data.load(split)
        after = MedicalVQA(test=str(path)).load("test")
        assert [(s.prompt, s.answer, s.images.keys) for s in after] == [
            (s.prompt, s.answer, s.images.keys) for s in before
        ]
