"""Run `pytest` in this folder."""

from __future__ import annotations

import pytest
from my_task import Backwards, InPlace

from lit_rlvr import Completion, RewardResult, Sample


def judge(text: str, sample: Sample) -> RewardResult:
    return InPlace()(Completion(text, (), "stop"), sample)


@pytest.mark.parametrize(
    ("text", "value", "correct"),
    [("dcba", 1.0, True), (" dcba\n", 1.0, True), ("dcab", 0.5, False), ("dcbaa", 0.8, False), ("", 0.0, False)],
)
def test_the_reward_of_right_and_wrong_answers(text: str, value: float, correct: bool) -> None:
    result = judge(text, Sample(id="abcd", prompt="abcd backwards:", answer="dcba"))
    assert (result.value, result.correct) == (value, correct)


def test_every_solution_is_rewarded() -> None:
    for sample in Backwards().rows("train"):
        assert judge(sample.row["solution"], sample).correct, sample


def test_no_question_is_in_both_sets() -> None:
    train = set()
    for sample in Backwards().rows("train"):
        train.add(sample.prompt)
    held_out = set()
    for sample in Backwards().rows("validation"):
        held_out.add(sample.prompt)
    assert len(train) > 1000 and len(held_out) == 128
    assert not train & held_out
