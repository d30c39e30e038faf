"""Run `pytest` in this folder."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from my_task import Drawer, Drawers

from lit_rlvr import Observation, Sample, Turn


def play(sample: Sample, turns: Sequence[str]) -> tuple[list[Observation], bool]:
    """Return the environment's answers to some turns, and its reward."""
    drawer = Drawer()
    drawer.reset(sample)
    return [drawer.step(Turn(text)) for text in turns], drawer.reward()


@pytest.mark.parametrize(
    ("turns", "reward"), [(["?", "417"], True), (["417"], True), (["?", "471"], False), (["?"], False), ([""], False)]
)
def test_the_reward_of_right_and_wrong_episodes(turns: list[str], reward: bool) -> None:
    assert play(Sample("a", "drawer 1:", "417"), turns)[1] is reward


def test_looking_shows_the_number_and_an_answer_ends_the_episode() -> None:
    looked, answered = play(Sample("a", "drawer 1:", "417"), ["?", "5"])[0]
    assert (looked.text, looked.done) == ("417", False)
    assert answered.done


def test_every_solution_is_rewarded() -> None:
    samples = list(Drawers().rows("train"))
    assert len(samples) > 500
    for sample in samples:
        answers, reward = play(sample, sample.row["solution"])
        assert reward and answers[-1].done, sample


def test_no_drawer_is_in_both_sets() -> None:
    train = set()
    for sample in Drawers().rows("train"):
        train.add(sample.prompt)
    held_out = set()
    for sample in Drawers().rows("validation"):
        held_out.add(sample.prompt)
    assert held_out and not train & held_out
