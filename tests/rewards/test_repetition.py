"""The penalty of repeated n-grams by hand, and against TRL's."""

from __future__ import annotations

import numpy as np
import pytest
from trl.rewards import get_repetition_penalty_reward

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import RepetitionPenalty
from lit_rlvr.types import Completion, Sample

SAMPLE = Sample("s", "?", "7")


@pytest.mark.parametrize(
    ("tokens", "size", "value"),
    [
        ((1, 2, 3, 4), 2, 0.0),
        ((5, 5, 5, 5, 5), 2, -0.75),  # 1 of 4 is new
        ((1, 2, 1, 2, 1), 2, -0.5),  # 12, 21, 12, 21
        ((1, 2, 3, 1, 2, 3), 3, -0.25),  # 123, 231, 312, 123
        ((1, 1), 3, 0.0),  # no n-gram
        ((1, 1, 2), 1, -1 / 3),
        ((), 3, 0.0),
    ],
)
def test_repetition_gives_hand_computed_values(tokens: tuple[int, ...], size: int, value: float) -> None:
    result = RepetitionPenalty(size).score([(Completion("", tokens, "length"), SAMPLE)])[0]
    assert result.value == pytest.approx(value) and result.correct is None


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_repetition_is_trls(size: int) -> None:
    rng = np.random.default_rng(size)
    ids = [tuple(rng.integers(0, 4, length).tolist()) for length in (0, 1, 2, 5, 30, 60)]
    ours = [RepetitionPenalty(size)(Completion("", tokens, "stop"), SAMPLE) for tokens in ids]
    assert ours == pytest.approx(get_repetition_penalty_reward(ngram_size=size)([list(tokens) for tokens in ids]))


def test_observations_do_not_count_and_no_ngram_crosses_them() -> None:
    tokens, sampled = (1, 2, 9, 9, 9, 1, 2, 3), (True, True, False, False, False, True, True, True)
    value = RepetitionPenalty(2)(Completion("", tokens, "stop", sampled=sampled), SAMPLE)
    assert value == pytest.approx(-1 / 3)  # 12, 12, 23


def test_an_ngram_has_a_token() -> None:
    with pytest.raises(UserError, match=r"rewards.RepetitionPenalty.ngram_size: 0 must lie in \[1, inf\)"):
        RepetitionPenalty(0)
