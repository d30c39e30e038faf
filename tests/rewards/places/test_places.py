"""Boxes and Points: overlaps against slow loops and torchvision, forms of texts, and each family's coordinates."""

import itertools
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_vlms import save_gemma3, save_internvl3_5, save_qwen2_5_vl, save_qwen2_vl, save_qwen3_vl

from lit_rlvr.datamodules import PromptDataModule, ShapeBox
from lit_rlvr.datamodules.reading.images import ImageOptions, open_images
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.errors import UserError
from lit_rlvr.media import Coordinates
from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.policy.loading import load_image_processor
from lit_rlvr.rewards import Boxes, Points
from lit_rlvr.rewards.places.geometry import box_overlaps, distance_to, match
from lit_rlvr.rewards.places.text import MOST_PLACES, find_boxes, find_points
from lit_rlvr.types import Completion, RewardResult, Sample

SEEN = Coordinates((200, 100), (1000, 1000))
GEMMA = Coordinates((200, 100), (1024, 1024), y_first=True)
QWEN2_5 = Coordinates((200, 100), (196, 112))


def row(answer: Any, seen: Coordinates = SEEN, **columns: Any) -> Sample:
    return Sample("r", "?", json.dumps(answer), row=columns, answer_object=answer, coordinates=(seen,))


def judge(reward: Boxes | Points, text: str, sample: Sample) -> RewardResult:
    (result,) = reward.score([(Completion(text, (1,), "stop"), sample)])
    return result


def slow_overlap(a: list[float], b: list[float], generalised: bool) -> float:
    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    overlap = shared / union if union else 0.0
    if not generalised:
        return overlap
    hull = area(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    return overlap - (hull - union) / hull


def random_boxes(rng: random.Random, count: int) -> list[list[float]]:
    corners = [[rng.uniform(0, 9) for _ in range(2)] for _ in range(count)]
    return [[x, y, x + rng.uniform(0.1, 6), y + rng.uniform(0.1, 6)] for x, y in corners]


@pytest.mark.parametrize("generalised", [False, True])
def test_overlaps_are_those_of_a_slow_loop_and_of_torchvision(generalised: bool) -> None:
    import torch

    ops = pytest.importorskip("torchvision.ops.boxes")
    rng = random.Random(0)
    for _ in range(50):
        boxes, others = random_boxes(rng, 4), random_boxes(rng, 3)
        ours = box_overlaps(np.array(boxes), np.array(others), generalised)
        slow = [[slow_overlap(a, b, generalised) for b in others] for a in boxes]
        theirs = ops.generalized_box_iou if generalised else ops.box_iou
        assert ours == pytest.approx(np.array(slow), abs=1e-12)
        tensors = torch.tensor(boxes, dtype=torch.float64), torch.tensor(others, dtype=torch.float64)
        assert ours == pytest.approx(theirs(*tensors).numpy(), abs=1e-12)


def test_a_box_without_an_area_overlaps_nothing() -> None:
    wanted = np.array([[1.0, 1.0, 3.0, 3.0]])
    for box in ([3.0, 3.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [1.0, 3.0, 3.0, 1.0]):
        assert box_overlaps(np.array([box]), wanted).tolist() == [[0.0]]


def test_the_matching_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (2, 3), (4, 2), (3, 3)]:
        scores = rng.normal(size=shape)
        tall = scores if shape[0] <= shape[1] else scores.T
        rows = range(tall.shape[0])
        best = max(
            sum(tall[r, c] for r, c in zip(rows, columns, strict=True))
            for columns in itertools.permutations(range(tall.shape[1]), tall.shape[0])
        )
        assert scores[match(scores)].sum() == pytest.approx(best)


POLYGON = [(0.0, 0.0), (4.0, 0.0), (4.0, 3.0), (2.0, 1.0), (0.0, 3.0)]


def slow_distance(point: tuple[float, float], polygon: list[tuple[float, float]]) -> float:
    """The turns of the polygon around the point, and the nearest of many points on its sides."""
    angle, nearest = 0.0, math.inf
    for (ax, ay), (bx, by) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        start, end = math.atan2(ay - point[1], ax - point[0]), math.atan2(by - point[1], bx - point[0])
        angle += (end - start + math.pi) % (2 * math.pi) - math.pi
        for k in range(2001):
            x, y = ax + (bx - ax) * k / 2000, ay + (by - ay) * k / 2000
            nearest = min(nearest, math.hypot(x - point[0], y - point[1]))
    return 0.0 if abs(angle) > math.pi else nearest


def test_distances_are_those_of_a_slow_loop() -> None:
    rng = random.Random(1)
    for _ in range(40):
        point = (rng.uniform(-2, 6), rng.uniform(-2, 5))
        assert distance_to(np.array(point), np.array(POLYGON)) == pytest.approx(slow_distance(point, POLYGON), abs=2e-3)
        box = [(1.0, 1.0), (3.0, 2.0)]
        corners = [(1.0, 1.0), (3.0, 1.0), (3.0, 2.0), (1.0, 2.0)]
        assert distance_to(np.array(point), np.array(box)) == pytest.approx(slow_distance(point, corners), abs=2e-3)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("[1, 2, 3, 4]", [(1, 2, 3, 4)]),
        ('```json\n[{"bbox_2d": [1, 2.5, 3, 4], "label": "a"}]\n```', [(1, 2.5, 3, 4)]),
        ('[{"bbox_2d": [1,2,3,4]}, {"bbox_2d": [5,6,7,8]}]', [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("<|object_ref_start|>a<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>", [(1, 2, 3, 4)]),
        ("<ref>a</ref><box>[[1, 2, 3, 4]]</box>", [(1, 2, 3, 4)]),
        ("[[1, 2], [3, 4]]", [(1, 2, 3, 4)]),
        ("<loc0001><loc0002><loc0003><loc1023> a", [(1, 2, 3, 1023)]),
        ("(-1, 2, 3, 4) and [5, 6]", [(-1, 2, 3, 4)]),
        ("[1, 2, 3] [1, 2, 3, 4, 5]", []),
        ("1, 2, 3, 4", []),
        (f"[{'9' * 400}, 2, 3, 4]", []),
        (f"[{'9' * 160}, 2, 3, 4] [1, 2, 3, 4]", []),
        ("[1, 2, 3, 4]" * (MOST_PLACES + 1), []),
    ],
)  # fmt: skip
def test_boxes_are_found_as_models_write_them(text: str, boxes: list[Any]) -> None:
    assert find_boxes(text) == boxes


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("(1, 2)", [(1, 2)]),
        ('{"point_2d": [1, 2], "label": "a"}', [(1, 2)]),
        ("<point>1 2</point>", [(1, 2)]),
        ('<point x="10.5" y="20" alt="a">a</point>', [(10.5, 20)]),
        ("[0, 0, 2, 4]", [(1, 2)]),
        ("[0, 0, 2, 4] at (5, 6)", [(5, 6)]),
        ("1, 2", []),
    ],
)
def test_points_are_found_as_models_write_them(text: str, points: list[Any]) -> None:
    assert find_points(text) == points


def test_overlap_precision_and_recall_by_hand() -> None:
    sample = row([[0, 0, 100, 100], [100, 0, 200, 100]])  # the halves of the image, in pixels of its file
    halves = "[0, 0, 500, 1000] [500, 0, 1000, 1000]"
    both = judge(Boxes(), halves, sample)
    assert (both.value, both.correct, both.status) == (1.0, True, "ok")
    assert both.criteria == {"precision": 1.0, "recall": 1.0, "iou": 1.0}
    half = judge(Boxes(), "[0, 0, 500, 1000]", sample)
    assert (half.value, half.correct) == (0.5, False) and half.criteria == {"precision": 1, "recall": 0.5, "iou": 0.5}
    more = judge(Boxes(), f"{halves} [0, 0, 10, 10] [0, 0, 20, 20]", sample)
    assert (more.value, more.correct) == (0.5, False)
    assert more.criteria == {"precision": 0.5, "recall": 1.0, "iou": 1.0}
    swapped = judge(Boxes(), "[500, 0, 1000, 1000] [0, 0, 500, 500]", sample)
    assert swapped.value == pytest.approx((1 + 0.5) / 2) and swapped.correct is True
    assert judge(Boxes(threshold=0.6), "[500, 0, 1000, 1000] [0, 0, 500, 500]", sample).correct is False
    assert judge(Boxes(), "there", sample).status == "parse_fail"
    assert judge(Boxes(), "<think>[0, 0, 500, 1000]</think> none", sample).status == "parse_fail"
    assert judge(Boxes(), "[1, 1, 2, 2] <answer>[0, 0, 500, 1000]</answer>", row([0, 0, 100, 100])).value == 1
    far = judge(Boxes(overlap="giou"), "[900, 0, 1000, 1000]", row([0, 0, 20, 100]))
    assert far.value == pytest.approx(-0.8) and far.correct is False
    huge = f"[{'1' * 160}, {'1' * 160}, {'2' * 160}, {'2' * 160}]"
    for overlap in ("iou", "giou"):
        for text in (huge, f"[0, 0, 500, 1000] {huge}"):
            result = judge(Boxes(overlap=overlap), text, row([0, 0, 100, 100]))  # type: ignore[arg-type]
            assert (result.value, result.correct, result.status) == (0.0, False, "parse_fail")


def test_references_in_every_layout() -> None:
    text, box = "[100, 200, 300, 400]", [20, 20, 60, 40]
    for reward, sample in [
        (Boxes(), row(box)),
        (Boxes(), row([box])),
        (Boxes(), row([{"bbox_2d": box, "label": "a"}])),
        (Boxes(layout="coco"), row([20, 20, 40, 20])),
        (Boxes(reference="fractions"), row([0.1, 0.2, 0.3, 0.4])),
        (Boxes(reference="thousandths"), row([100, 200, 300, 400])),
        (Boxes(column="box"), row("a cat", box=json.dumps(box))),
    ]:
        assert judge(reward, text, sample).value == pytest.approx(1.0)
        assert judge(reward, str(reward.gold_completion(sample)), sample).correct is True


@pytest.mark.parametrize(
    ("reward", "sample", "message"),
    [
        (Boxes(), row([60, 20, 20, 40]), "is no box x1, y1, x2, y2 with x1 < x2"),
        (Boxes(), row([20, 20, 300, 40]), "reaches out of its image; set the units"),
        (Boxes(), row("here"), "no places as lists of numbers in 'here'"),
        (Boxes(), Sample("r", "?", "1", aliases=("2", "3", "4")), "set data.reading.answers: object"),
        (Boxes(), Sample("r", "?", "[1, 2, 3, 4]"), "the row has 0 images whose size is known, not one"),
        (Boxes(), row([20, 20, 60, 20, 60, 40]), "is no box of four numbers; rewards.Points reads points and masks"),
        (Boxes(), row([-20, 20, 60, 40]), "reaches out of its image; set the units (rewards.Boxes.reference)"),
        (Boxes(), row([0.1, 0.2, 0.3, 0.4]), "lies in the first pixel of its image; for fractions of its sides set"),
        (Points(), row([0.1, 0.2]), "for fractions of its sides set rewards.Points.reference: fractions"),
        (Points(), row([60, 20, 20, 40]), "is no box x1, y1, x2, y2 with x1 < x2"),
        (Points(), row([20, 20, 300, 40, 20, 40]), "of its image; set the units (rewards.Points.reference)"),
        (Points(), row([1, 2, 3]), "is neither a point of two numbers, nor a box of four"),
    ],
)
def test_unreadable_references_are_refused(reward: Boxes | Points, sample: Sample, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        reward.check_reference(sample)


def test_points_in_boxes_masks_and_near_points() -> None:
    box, mask = row([20, 20, 60, 40]), row([20, 20, 60, 20, 20, 40])  # a triangle
    assert [judge(Points(), text, box).value for text in ("(200, 300)", "(310, 300)", "(100, 400)")] == [1, 0, 1]
    assert [judge(Points(), text, mask).correct for text in ("(120, 220)", "(280, 380)")] == [True, False]
    diagonal = math.hypot(200, 100)
    near = judge(Points(falloff=0.1), "(320, 300)", box)  # 4 pixels to the right of the box
    assert near.value == pytest.approx(1 - 4 / diagonal / 0.1) and near.correct is False
    spot = row([100, 50])
    assert judge(Points(radius=0.02), "(520, 500)", spot).correct is True, "4 pixels, and 2 % are 4.5"
    assert judge(Points(radius=0.01), "(520, 500)", spot).correct is False
    assert judge(Points(layout="coco"), "(200, 500)", row([20, 40, 60, 20])).correct is True
    assert judge(Points(), "(0, 0)", row([0, 0])).correct is True
    two = row([[0, 0, 50, 50], [100, 50, 150, 100]])
    assert judge(Points(), "(600, 800) (100, 100)", two).correct is True
    assert judge(Points(), "(600, 800)", two).value == 0.5
    assert judge(Points(), "(600, 800) (100, 100) (1, 1) (2, 2)", two).value == 0.5
    assert judge(Points(), str(Points().gold_completion(box)), box).correct is True


@pytest.mark.parametrize(
    ("seen", "text"),
    [(SEEN, "[100, 200, 300, 400]"), (QWEN2_5, "[19.6, 22.4, 58.8, 44.8]"), (GEMMA, "[204.8, 102.4, 409.6, 307.2]")],
)
def test_coordinates_of_each_kind_are_the_same_box(seen: Coordinates, text: str) -> None:
    assert judge(Boxes(), text, row([20, 20, 60, 40], seen)).value == pytest.approx(1.0)


def test_what_the_model_writes_may_be_set() -> None:
    sample = row([20, 20, 60, 40], QWEN2_5)
    assert judge(Boxes(written="pixels"), "[20, 20, 60, 40]", sample).value == pytest.approx(1.0)
    assert judge(Boxes(written="pixels", y_first=True), "[20, 20, 40, 60]", sample).value == pytest.approx(1.0)
    assert judge(Boxes(written="thousandths"), "[100, 200, 300, 400]", sample).value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("save", "corner", "y_first"),
    [
        (save_qwen2_vl, (1000, 1000), False),
        (save_qwen2_5_vl, (112, 56), False),  # 100 x 50 pixels, the nearest multiples of 28
        (save_qwen3_vl, (1000, 1000), False),
        (save_internvl3_5, (1000, 1000), False),
        (save_gemma3, (1024, 1024), True),
    ],
)
def test_each_family_writes_places_its_own_way(save: Any, corner: Any, y_first: bool, tmp_path: Path) -> None:
    """The file has 400 x 200 pixels, of which `max_pixels` leaves 100 x 50."""
    Image.new("RGB", (400, 200)).save(tmp_path / "a.png")
    data = PromptDataModule(
        train=[{"prompt": "<image>?", "image": str(tmp_path / "a.png"), "answer": [40, 20, 120, 100]}],
        reading=ReadingOptions(answers="object"),
        images=ImageOptions(max_pixels=5000),
    )
    data.use_model(type("Module", (), {})())
    folder = str(save(tmp_path / "model"))
    data.image_processor = load_image_processor(folder)
    data.tokenizer = data.image_processor.tokenizer
    (sample,) = data.load("train")
    sample = data.encode(sample).sample
    (seen,) = sample.coordinates
    assert (seen.file, seen.corner, seen.y_first) == ((400, 200), corner, y_first)
    reward = Boxes()
    gold = str(reward.gold_completion(sample))
    assert judge(reward, gold, sample).value > 0.95
    expected = [40 / 400 * corner[0], 20 / 200 * corner[1], 120 / 400 * corner[0], 100 / 200 * corner[1]]
    if y_first:
        expected = [expected[1], expected[0], expected[3], expected[2]]
    assert json.loads(gold) == [[round(number) for number in expected]]


def test_a_family_with_a_resize_of_its_own_writes_pixels_of_that_size(tmp_path: Path) -> None:
    processor = load_image_processor(str(save_qwen2_5_vl(tmp_path)))

    class Halved(ImageProcessor):
        def placeholders(self, width: int, height: int) -> tuple[int, ...]:
            return (1,)

        def cut(self, resized: Any) -> Any:
            raise NotImplementedError

        def resize(self, image: Any) -> Any:
            return image.resize((image.width // 2, image.height // 2))

    own = Halved(processor.family, processor.folder, processor.processor, processor.tokenizer)
    images = open_images([Image.new("RGB", (200, 100))], Path(), ImageOptions())
    assert own.coordinates_of(images) == (Coordinates((200, 100), (100, 50), seen=(100, 50)),)


def test_the_drawn_box_is_that_of_the_shape(tmp_path: Path) -> None:
    data = ShapeBox(pictures=30, held_out=0)
    for sample in data.load("train"):
        dark = np.argwhere(np.asarray(sample.images[0]).max(2) < 180)  # (y, x)
        (top, left), (bottom, right) = dark.min(0), dark.max(0) + 1
        assert np.abs(np.array(json.loads(sample.answer)) - [left, top, right, bottom]).max() <= 1
    data.image_processor = load_image_processor(str(save_gemma3(tmp_path / "model")))
    data.tokenizer = data.image_processor.tokenizer
    prompt = data.encode(data.load("train")[0])
    assert judge(Boxes(), prompt.sample.row["solution"], prompt.sample).value > 0.95
