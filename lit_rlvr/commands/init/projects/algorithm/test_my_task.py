"""Run `pytest` in this folder."""

from __future__ import annotations

from math import log

import pytest
import torch
from my_task import UpperClip

from lit_rlvr import LossInputs, check_algorithm


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_the_loss_is_sound(clip: float) -> None:
    assert [str(finding) for finding in check_algorithm(UpperClip(clip=clip)) if not finding.ok] == []


def test_the_loss_of_one_token() -> None:
    """Compare with values by hand: ratios 2 and 1/2, advantages 1 and -1, a clip of 0.2."""
    for w, advantage, expected in ((2.0, 1.0, -1.2), (2.0, -1.0, 2.0), (0.5, 1.0, -0.5), (0.5, -1.0, 0.5)):
        ones = torch.ones(1, 1)
        logp = torch.full((1, 1), log(w), requires_grad=True)
        x = LossInputs(
            logp=logp,
            old_logp=0 * ones,
            mask=ones.bool(),
            advantages=advantage * ones,
            token_weight=ones,
            row_weight=ones[0],
            prompt=torch.zeros(1, dtype=torch.long),
            plain_weight=ones,
            rollout_logp=0 * ones,
        )
        assert float(UpperClip(clip=0.2).objective(x)[0].detach()) == pytest.approx(expected)
