"""The drawn tasks: the answer can be counted in the picture, and everything follows from the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lit_rlvr.datamodules import CellArea, LesionCount, LesionPlace, ShapeBox
from lit_rlvr.datamodules.base import EvaluationData

TASKS = [CellArea, LesionCount, LesionPlace, ShapeBox]


def blobs(mask: np.ndarray) -> int:
    """Connected components (by edges) of a (H, W) mask, by flooding one after the other."""
    mask, count = mask.copy(), 0
    while mask.any():
        front = [tuple(np.argwhere(mask)[0])]
        count += 1
        while front:
            y, x = front.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x]:
                mask[y, x] = False
                front += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return count


def test_the_area_is_the_number_of_filled_cells() -> None:
    seen = set()
    for sample in CellArea(pictures=60, held_out=0).load("train"):
        cells = np.asarray(sample.images[0]).min(2)[7::14, 7::14]  # (6, 6), the middle of each cell
        assert sample.answer == str((cells < 160).sum()) and sample.row["solution"] == f"\\boxed{{{sample.answer}}}"
        seen.add(sample.answer)
    assert seen == {"1", "2", "3", "4", "6", "9"}


def test_the_lesions_can_be_counted() -> None:
    seen = set()
    for sample in LesionCount(pictures=60, held_out=0).load("train"):
        picture = np.asarray(sample.images[0])[..., 0].astype(float)
        smooth = sum(np.roll(picture, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
        assert blobs(smooth > 130) == int(sample.answer) + 1  # the ring is the other one
        seen.add(sample.answer)
    assert seen == {"0", "1", "2", "3", "4"}


def test_the_lesion_is_in_its_quadrant() -> None:
    seen = set()
    for sample in LesionPlace(pictures=40, held_out=0).load("train"):
        picture = np.asarray(sample.images[0])[..., 0].astype(float)
        y, x = np.mgrid[:84, :84] - 41.5
        bright = np.argwhere((picture > 190) & (np.hypot(x, y) < 28)).mean(0)  # (y, x) of the lesion's middle
        said = sample.options["ABCD".index(sample.answer)]
        assert said == f"{'bottom' if bright[0] > 41.5 else 'top'} {'right' if bright[1] > 41.5 else 'left'}"
        assert sample.prompt.endswith("A) top left\nB) top right\nC) bottom left\nD) bottom right")
        seen.add(sample.answer)
    assert seen == set("ABCD")


@pytest.mark.parametrize("task", TASKS)
def test_everything_follows_from_the_seed(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def pictures(seed: int, split: Any) -> list[bytes]:
        return [s.images[0].tobytes() for s in task(pictures=8, held_out=4, seed=seed).load(split)]

    train, held_out = pictures(0, "train"), pictures(0, "validation")
    assert (len(train), len(held_out)) == (8, 4) and not set(train) & set(held_out)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert pictures(0, "train") == train and pictures(1, "train") != train
    assert task(pictures=8).load("test") == []


def test_dealt_images_are_those_of_other_prompts() -> None:
    plain, dealt = (
        LesionCount(pictures=3, held_out=20),
        LesionCount(pictures=3, held_out=20, evaluation=EvaluationData(shuffle_images=True)),
    )
    ours, theirs = dealt.load("validation"), plain.load("validation")
    keys = [sample.images.keys for sample in theirs]  # type: ignore[attr-defined]
    assert [sample.answer for sample in ours] == [sample.answer for sample in theirs]
    moved = [sample.images.keys for sample in ours]  # type: ignore[attr-defined]
    assert sorted(moved) == sorted(keys) and all(a != b for a, b in zip(moved, keys, strict=True))
    first = [sample.images.keys for sample in dealt.load("train")]  # type: ignore[attr-defined]
    assert first == [sample.images.keys for sample in plain.load("train")]  # type: ignore[attr-defined]
