"""What judges are sent of rows with images: the picture that the policy saw, and no more."""

from __future__ import annotations

import logging
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps
from stub_judge import StubJudge, pictures_in
from tiny_vlms import save_tiny_gemma3

from lit_rlvr.datamodules.reading.images import ImageOptions, open_images, picture_hash
from lit_rlvr.errors import UserError
from lit_rlvr.media import Video
from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.policy.families.qwen_vl import QwenImageProcessor
from lit_rlvr.policy.loading import load_image_processor
from lit_rlvr.rewards import GroupJudge, PairwiseJudge, PointwiseJudge, RewardModel, RewardModelServer, RubricJudge
from lit_rlvr.types import Completion, Sample

ROW = Sample("a", "<image>\nWhat is this?", "a square", source="set.jsonl:3")


def gradient(width: int, height: int) -> Image.Image:
    """An image whose pixels all differ from their neighbours."""
    return Image.linear_gradient("L").resize((width, height)).convert("RGB").rotate(30)


def row_with(processor: ImageProcessor, *pictures: Any, max_pixels: int | None = None) -> Sample:
    """A row with images, opened as a data set does it for a model."""
    images = open_images(pictures, Path(), ImageOptions(max_pixels=max_pixels))
    return replace(ROW, images=images, coordinates=processor.coordinates_of(images))


def judged(row: Sample, *texts: str) -> list[Any]:
    return [(Completion(text, (1,), "stop"), row) for text in texts]


def says_something(text: str, fields: dict[str, list[Any]]) -> Any:
    return {name: values[0] for name, values in fields.items()}


@pytest.fixture(scope="module")
def processor(vlm_folder: Path) -> ImageProcessor:
    return load_image_processor(str(vlm_folder))


def test_a_judge_is_sent_the_picture_that_the_model_saw(processor: ImageProcessor) -> None:
    row = row_with(processor, gradient(101, 57), gradient(30, 30), max_pixels=4000)
    seen = processor.pixels(row.images).images
    assert seen[0].size not in ((101, 57), row.images[0].size), "the data set and the family both resize it"
    with StubJudge(says_something) as stub:
        judges = [
            PointwiseJudge(server=stub.server()),
            RubricJudge(server=stub.server(), rubric={"short": 1.0, "right": 1.0}, one_call_each=True),
            PairwiseJudge(stub.server()),
        ]
        for judge in judges:
            judge.score(judged(row, "a square", "a circle"))
        assert stub.calls == 2 + 4 + 2
        for body in stub.bodies:
            assert [picture.tobytes() for picture in pictures_in(body)] == [image.tobytes() for image in seen]
            assert "images before the text belong to the question" in body["messages"][0]["content"]
            assert "What is this?" in body["messages"][1]["content"][-1]["text"]


def test_a_picture_has_at_most_so_many_pixels(processor: ImageProcessor) -> None:
    row = row_with(processor, gradient(112, 56), gradient(56, 56))
    with StubJudge(says_something) as stub:
        PointwiseJudge(server=stub.server(max_pixels=4000)).score(judged(row, "a square"))
        assert [picture.size for picture in pictures_in(stub.bodies[0])] == [(89, 44), (56, 56)]
        PointwiseJudge(server=stub.server(max_pixels=0)).score(judged(row, "a square"))
        assert isinstance(stub.bodies[1]["messages"][1]["content"], str)
        PointwiseJudge(server=stub.server()).score(judged(replace(ROW, images=()), "a square"))
        assert isinstance(stub.bodies[2]["messages"][1]["content"], str)
        assert "images" not in stub.bodies[2]["messages"][0]["content"]


def played(row: Sample, processor: ImageProcessor, text: str, *pictures: Image.Image) -> Any:
    """A completion in whose episode an environment showed pictures."""
    pixels = processor.pixels(pictures) if pictures else None
    return replace(Completion(text, (1,), "stop"), pixels=pixels), row


def images_by_line(body: dict[str, Any]) -> dict[str, list[str]]:
    """The hashes of the pictures in a request, by the line before them; "" before those of the row."""
    lines: dict[str, list[str]] = {"": []}
    hashes = iter(picture_hash(picture) for picture in pictures_in(body))
    for part in body["messages"][1]["content"][:-1]:
        if part["type"] == "text":
            lines[re.sub(r" \w+\]$", "]", part["text"])] = []
        else:
            lines[[*lines][-1]].append(next(hashes))
    return lines


def test_a_judge_is_sent_what_an_environment_showed(processor: ImageProcessor) -> None:
    row = row_with(processor, gradient(56, 56))
    pair = played(row, processor, "a square", gradient(84, 56), gradient(56, 84))
    own, *shown = [picture_hash(one) for one in (*processor.pixels(row.images).images, *pair[0].pixels.images)]
    with StubJudge(says_something) as stub:
        for judge in (PointwiseJudge(server=stub.server()), GroupJudge(server=stub.server(), shown_twice=0)):
            judge.score([pair])
            title = "answer" if judge.reports_correct else "answer 1"
            assert images_by_line(stub.bodies[-1]) == {"": [own], f"[images of {title}]": shown}
            assert "were not in the question: the writer of that" in stub.bodies[-1]["messages"][0]["content"]
        PointwiseJudge(server=stub.server(max_pixels=0)).score([pair])
        assert isinstance(stub.bodies[-1]["messages"][1]["content"], str)
        PointwiseJudge(server=stub.server(max_pixels=1000)).score([pair])
        assert all(picture.width * picture.height <= 1000 for picture in pictures_in(stub.bodies[-1]))


def test_each_answer_of_a_group_has_the_images_that_its_own_episode_showed(processor: ImageProcessor) -> None:
    row = row_with(processor, gradient(56, 56))
    pairs = [
        played(row, processor, "a square", gradient(84, 56)),
        played(row, processor, "a square", gradient(56, 84), gradient(84, 84)),
        played(row, processor, "a circle"),
    ]
    shown = [[picture_hash(one) for one in pair[0].pixels.images] if pair[0].pixels else [] for pair in pairs]
    own = [picture_hash(one) for one in processor.pixels(row.images).images]
    with StubJudge(says_something) as stub:
        PairwiseJudge(stub.server()).score([*pairs, pairs[0]])
        assert stub.calls == 3 * 2, "equal ones are asked about once; the same text with other images is another answer"
        for body in stub.bodies:
            lines = images_by_line(body)
            assert lines.pop("") == own
            texts = dict(re.findall(r"\[(answer \w) \w+\]\n(.*?)\n", body["messages"][1]["content"][-1]["text"]))
            for line, images in lines.items():
                assert (texts[line.removeprefix("[images of ")[:-1]], images) in zip(
                    ("a square", "a square"), shown[:2], strict=True
                )
            assert len(lines) == list(texts.values()).count("a square"), "a line for each answer with images"
    for by in ("scores", "ranks"):
        with StubJudge(lambda text, fields: {name: place for place, name in enumerate(fields, 1)}) as stub:
            results = GroupJudge(by=by, server=stub.server(), shown_twice=0).score(pairs)
            assert stub.calls == 1
            (body,) = stub.bodies
            order = re.findall(r"\[answer \d \w+\]\n(.*?)\n", body["messages"][1]["content"][-1]["text"])
            lines = images_by_line(body)
            found = [(text, lines.get(f"[images of answer {place}]", [])) for place, text in enumerate(order, 1)]
            answers = list(zip(("a square", "a square", "a circle"), shown, strict=True))
            assert sorted(found) == sorted(answers)
            for answer, result in zip(answers, results, strict=True):
                place = found.index(answer) + 1
                assert result.value == pytest.approx(place / 10 if by == "scores" else (3 - place) / 2)


def test_a_group_with_too_many_images_is_split(processor: ImageProcessor, caplog: pytest.LogCaptureFixture) -> None:
    row = row_with(processor, gradient(56, 56))
    pairs = [played(row, processor, f"{n}", gradient(84, 56), gradient(56, 84 + n)) for n in range(4)]
    with StubJudge(says_something) as stub, caplog.at_level(logging.WARNING, "lit_rlvr"):
        GroupJudge(server=stub.server(), max_images=5, shown_twice=0).score(pairs)
        assert [len(pictures_in(body)) for body in stub.bodies] == [1 + 4, 1 + 4]
    assert "4 characters and 8 images, more than max_characters=40000 or max_images=5, so they are" in caplog.text


def test_a_judge_sees_what_a_resize_of_the_familys_own_makes(processor: ImageProcessor) -> None:
    class Letterbox(QwenImageProcessor):
        """Puts an image into a square with margins, as ours would never do."""

        def resize(self, image: Any) -> Any:
            return ImageOps.pad(image, (56, 56), color="red")

        def resized_size(self, width: int, height: int) -> tuple[int, int]:
            return 56, 56

    own = Letterbox(processor.family, processor.folder, processor.processor, processor.tokenizer)
    row = row_with(own, gradient(112, 40))
    with StubJudge(says_something) as stub:
        PointwiseJudge(server=stub.server()).score(judged(row, "a square"))
        (picture,) = pictures_in(stub.bodies[0])
        assert picture.tobytes() == own.pixels(row.images).images[0].tobytes()
        assert picture.getpixel((0, 0)) == (255, 0, 0)
        elsewhere = replace(row, coordinates=pickle.loads(pickle.dumps(row.coordinates)))
        with pytest.raises(UserError, match=r"set\.jsonl:3: the model saw image 1 in 56 x 56 pixels, and the row does"):
            PointwiseJudge(server=stub.server()).score(judged(elsewhere, "a square"))


def test_the_question_at_the_start_has_the_images_of_the_row_with_the_most(processor: ImageProcessor) -> None:
    rows = [row_with(processor, *[gradient(56, 56 * number)] * number) for number in (1, 2, 1)]
    with StubJudge(says_something) as stub:
        for judge in (
            PointwiseJudge(server=stub.server(max_retries=0)),
            PairwiseJudge(stub.server(max_retries=0)),
            RubricJudge(server=stub.server(max_retries=0)),
        ):
            judge.rubric = {"short": 1.0}
            for row in rows:
                judge.check_reference(row)
            judge.connect()
            assert [picture.size for picture in pictures_in(stub.bodies[-1])] == [(56, 112), (56, 112)]
            stub.faults = [400]
            with pytest.raises(UserError, match=r"if the judge takes no images, set `server\.max_pixels: 0`"):
                judge.connect()


def test_a_row_with_a_video_is_sent_without_pictures_and_named(caplog: pytest.LogCaptureFixture) -> None:
    row = replace(ROW, images=(Video((gradient(28, 28),) * 2), gradient(28, 28)))
    with StubJudge(says_something) as stub, caplog.at_level(logging.WARNING, "lit_rlvr"):
        for judge in (PointwiseJudge(server=stub.server()), RewardModelServer(stub.server())):
            judge.check_reference(row)
            judge.connect()
            judge.score(judged(row, "a square"))
            assert all(isinstance(message["content"], str) for message in stub.bodies[-1]["messages"])
    assert caplog.text.count("the judge sees no images and no videos") == 2 and "set.jsonl:3" in caplog.text


def test_a_reward_model_that_takes_images_is_refused_for_rows_with_some(tmp_path: Path) -> None:
    reward = RewardModel(str(save_tiny_gemma3(tmp_path)))
    reward.check_reference(ROW)
    with pytest.raises(UserError, match="takes images, of which RewardModel would show it none"):
        reward.check_reference(replace(ROW, images=(gradient(28, 28),)))
