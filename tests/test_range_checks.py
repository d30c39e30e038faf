"""Intervals as in mathematics."""

import math

import pytest

from lit_rlvr.common.arguments import check_within
from lit_rlvr.errors import UserError

CASES = {
    "[0, 1)": ([0, 0.5, 0.999], [-1e-9, 1, 2, math.inf]),
    "(0, 1]": ([1e-9, 1], [0, 1.001, -1]),
    "(0, inf)": ([1e-300, 1e300], [0, math.inf, -math.inf]),
    "[1, inf]": ([1, math.inf], [0.99]),
    "(-inf, inf)": ([-3, 0, 3], [math.inf, -math.inf]),
}


@pytest.mark.parametrize("interval", CASES)
def test_numbers_within_pass_and_others_are_named(interval: str) -> None:
    within, outside = CASES[interval]
    for number in within:
        check_within(interval, "model", lr=number, other=None)
    for number in (*outside, math.nan):
        with pytest.raises(UserError) as error:
            check_within(interval, "model", other=within[0], lr=number)
        assert str(error.value) == f"model.lr: {number} must lie in {interval}"
