"""Length rewards against values worked out by hand."""

from __future__ import annotations

import pytest
from trl.rewards import get_soft_overlong_punishment

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import CosineScaled, Overlong
from lit_rlvr.types import Completion, Sample

SAMPLE = Sample("s", "What is 3 + 4?", "7")


def completion(text: str, tokens: int, cut: bool = False) -> Completion:
    return Completion(text, tuple(range(tokens)), "length" if cut else "stop")


@pytest.mark.parametrize(("tokens", "value"), [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (150, -1.0)])
def test_overlong_is_daposs_ramp(tokens: int, value: float) -> None:
    assert Overlong(max_tokens=100, cache_tokens=20)(completion("", tokens), SAMPLE) == pytest.approx(value)


@pytest.mark.parametrize(("tokens", "value"), [(99, 0.0), (100, 0.0), (101, -1.0)])
def test_overlong_without_a_slope_punishes_what_is_longer(tokens: int, value: float) -> None:
    assert Overlong(max_tokens=100, cache_tokens=0)(completion("", tokens), SAMPLE) == value
    theirs = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=0)
    assert theirs(completion_ids=[[0] * tokens]) == [value]


@pytest.mark.parametrize("cache", [-1, 101])
def test_overlong_refuses_a_slope_that_does_not_fit(cache: int) -> None:
    with pytest.raises(UserError, match="cache_tokens"):
        Overlong(max_tokens=100, cache_tokens=cache)


@pytest.mark.parametrize(
    ("text", "tokens", "value", "correct"),
    [
        ("7", 0, 1.0, True),
        ("7", 50, 0.75, True),  # half way down: the cosine is 0
        ("7", 25, 0.75 + 0.25 * 2**-0.5, True),  # cos(pi / 4)
        ("7", 100, 0.5, True),
        ("7", 300, 0.5, True),  # clamped, not periodic
        ("8", 0, -0.5, False),
        ("8", 50, -0.25, False),
        ("8", 100, 0.0, False),
        ("no idea", 0, -0.5, False),
    ],
)
def test_cosine_scaled_gives_hand_computed_values(text: str, tokens: int, value: float, correct: bool) -> None:
    result = CosineScaled(max_length=100).score([(completion(text, tokens), SAMPLE)])[0]
    assert result.value == pytest.approx(value)
    assert result.correct is correct


def test_cosine_scaled_takes_its_alphas() -> None:
    reward = CosineScaled(max_length=10, min_correct=0.1, max_correct=2.0, min_wrong=-3.0, max_wrong=-1.0)
    values = [r.value for r in reward.score([(completion(t, n), SAMPLE) for t in ("7", "8") for n in (0, 10)])]
    assert values == pytest.approx([2.0, 0.1, -3.0, -1.0])


def test_a_cut_off_answer_is_wrong() -> None:
    result = CosineScaled(max_length=100).score([(completion("7", 100, cut=True), SAMPLE)])[0]
    assert (result.value, result.correct) == (pytest.approx(0.0), False)


def test_cosine_scaled_masks_a_reference_that_cannot_be_read() -> None:
    pairs = [(completion(text, 5), Sample("s", "?", answer)) for answer in ("???", "7") for text in ("8", "???")]
    found = CosineScaled(max_length=100).score(pairs)
    assert [r.status for r in found] == ["unjudged", "unjudged", "ok", "parse_fail"]
    assert "'???' cannot be read" in found[0].detail
