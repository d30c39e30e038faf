"""Run `pytest` in this folder."""

from __future__ import annotations

from collections import Counter

import pytest
from my_task import COLOURS, Discs, exact
from PIL import ImageColor

from lit_rlvr.types import Completion, Sample


@pytest.mark.parametrize(("text", "right"), [("red", True), (" Red\n", True), ("green", False), ("", False)])
def test_the_reward_of_right_and_wrong_answers(text: str, right: bool) -> None:
    assert exact(Completion(text, (), "stop"), Sample("a", "<image>colour?", "red")) is right


def test_every_picture_shows_its_answer() -> None:
    samples = list(Discs().rows("validation"))
    for sample in samples:
        assert exact(Completion(sample.row["solution"], (), "stop"), sample)
        (picture,) = sample.images
        assert ImageColor.getrgb(sample.answer) in {colour for _, colour in picture.getcolors()}, sample.id
    assert min(Counter(sample.answer for sample in samples)[colour] for colour in COLOURS) > 10


def test_no_picture_is_in_both_sets() -> None:
    train, held_out = ({s.images[0].tobytes() for s in Discs().rows(split)} for split in ("train", "validation"))
    assert len(held_out) == 128 and not train & held_out
