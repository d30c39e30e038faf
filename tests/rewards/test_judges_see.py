"""What judges are sent of rows with images: the picture that the policy saw, and no more."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stub_judge import StubJudge, pictures_in
from tiny_vlms import save_tiny_gemma3

from lit_rlvr.datamodules.reading.images import ImageOptions, open_images
from lit_rlvr.errors import UserError
from lit_rlvr.media import Video
from lit_rlvr.policy.families.base import ImageProcessor
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


def test_a_judge_is_sent_what_an_environment_showed(processor: ImageProcessor) -> None:
    row = row_with(processor, gradient(56, 56))
    shown = processor.pixels([gradient(84, 56), gradient(56, 84)])
    pair = replace(Completion("a square", (1,), "stop"), pixels=shown), row
    with StubJudge(says_something) as stub:
        PointwiseJudge(server=stub.server()).score([pair])
        pictures = [*processor.pixels(row.images).images, *shown.images]
        assert [picture.tobytes() for picture in pictures_in(stub.bodies[0])] == [one.tobytes() for one in pictures]
        assert "The last 2 of them were not in the question" in stub.bodies[0]["messages"][0]["content"]
        GroupJudge(server=stub.server()).score([pair])
        assert len(pictures_in(stub.bodies[1])) == 1, "those of the row, which all answers share"
        PointwiseJudge(server=stub.server(max_pixels=0)).score([pair])
        assert isinstance(stub.bodies[2]["messages"][1]["content"], str)


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
