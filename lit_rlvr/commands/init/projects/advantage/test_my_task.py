"""Run `pytest` in this folder."""

from __future__ import annotations

import pytest
import torch
from my_task import Hardest

from lit_rlvr.advantages import GroupBatch
from lit_rlvr.commands.check import check_advantage


@pytest.mark.parametrize("sharpness", [0.0, 0.5, 2.0])
def test_the_advantage_is_sound(sharpness: float) -> None:
    assert [str(finding) for finding in check_advantage(Hardest(sharpness)) if not finding.ok] == []


def test_two_groups_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    advantages = Hardest(sharpness=0.5)(GroupBatch(rewards, correct=rewards))
    expected = [[0.75 * 0.75**0.5, *[-0.25 * 0.75**0.5] * 3], [*[0.25 * 0.5] * 3, -0.75 * 0.5]]
    torch.testing.assert_close(advantages, torch.tensor(expected))
