"""What a checkpoint must have, and what it may lack."""

import pytest

from lit_rlvr.training.state import RunState
from lit_rlvr.training.step.failures import SkippedSteps


def test_a_part_that_every_checkpoint_has_may_not_be_missing() -> None:
    old, new = SkippedSteps(3), SkippedSteps(3)
    new.total = 2
    state = RunState({"skipped": new, "noise_scale": old}, {})
    states = state.state_dict()
    states["skipped"] = {"total": 5, "in_a_row": 1}
    state.load_state_dict({"skipped": states["skipped"]})  # an earlier version had no noise scale
    assert (new.total, new.in_a_row, old.total) == (5, 1, 0)
    with pytest.raises(KeyError, match="skipped"):
        state.load_state_dict({"noise_scale": states["noise_scale"]})
