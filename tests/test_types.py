"""Padding, sampling parameters, and what a rollout says of itself."""

from dataclasses import replace

import pytest
import torch
from tiny import make_rollout

from lit_rlvr.errors import UserError
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, pad_completions


def test_completions_are_padded_on_the_right() -> None:
    one = Completion("a", (5, 6, 7), "length", (-0.1, -0.2, -0.3))
    two = Completion("b", (8,), "stop", (-0.4,))
    none = Completion("", (), "length", ())
    token_ids, mask, logprobs = pad_completions([[one, two], [none, one]])
    assert token_ids.tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0], [5, 6, 7]] and token_ids.dtype == torch.long
    assert mask.tolist() == [[True] * 3, [True, False, False], [False] * 3, [True] * 3]
    torch.testing.assert_close(logprobs[:2], torch.tensor([[-0.1, -0.2, -0.3], [-0.4, 0.0, 0.0]]))
    assert pad_completions([[none]])[0].shape == (1, 1)
    assert pad_completions([])[0].shape == (0, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1), ("max_tokens", 0)],
)
def test_impossible_sampling_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UserError, match=field):
        Sampling(**{field: value})  # type: ignore[arg-type]


def test_sampling_that_is_not_the_models_own() -> None:
    for other in (Sampling(), Sampling(temperature=0.3, banned_token_ids=(1,))):
        assert not other.truncates_distribution
    assert Sampling(top_p=0.9).truncates_distribution and Sampling(top_k=5).truncates_distribution
    assert Sampling(banned_token_ids=(4, 2)).with_banned([3, 2]).banned_token_ids == (2, 3, 4)


def test_a_rollout_knows_its_lengths_and_truncation() -> None:
    rollout = make_rollout([[5], [5]], [[[6, 7], []], [[6], [6, 7, 8]]])
    rollout.completions[1][1] = replace(rollout.completions[1][1], finish_reason="length")
    assert rollout.lengths.tolist() == [[2.0, 0.0], [1.0, 3.0]]
    assert (rollout.truncated.tolist(), rollout.group_size) == ([[0.0, 0.0], [0.0, 1.0]], 2)
