"""p-values against tables, closed forms and an independent count."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from lit_rlvr.compare.significance import holm, limits, paired_t_test, sign_flip_test, student_tail


@pytest.mark.parametrize(
    ("freedom", "t", "p"),
    [(1, 12.7062, 0.05), (2, 4.30265, 0.05), (3, 3.18245, 0.05), (4, 2.77645, 0.05), (5, 2.57058, 0.05),
     (9, 3.24984, 0.01), (10, 3.16927, 0.01), (29, 2.04523, 0.05), (30, 2.75000, 0.01)],
)  # fmt: skip
def test_student_against_the_usual_table(freedom: int, t: float, p: float) -> None:
    assert student_tail(t, freedom) == pytest.approx(p, rel=1e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 6, 7])
def test_student_against_its_integrated_density(freedom: int) -> None:
    norm = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    for t in (0.0, 0.3, 1.7, 5.0):
        x = np.linspace(0, t, 20001)
        y = norm * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        inside = 2 * float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())
        assert student_tail(t, freedom) == pytest.approx(1 - inside, abs=1e-8)


def test_a_paired_t_test_by_hand() -> None:
    """Differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, t = 0.2 / (0.1 / sqrt 3) = 3.4641 with 2 degrees of freedom,
    where P(|T| > t) = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12 / 14)."""
    assert paired_t_test([0.1, 0.2, 0.3]) == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-12)
    assert paired_t_test([-0.1, -0.2, -0.3]) == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-12)


def test_what_has_no_p_value() -> None:
    assert paired_t_test([]) is None and paired_t_test([0.5]) is None
    assert paired_t_test([0.25, 0.25, 0.25]) is None, "no spread to compare with"
    assert paired_t_test([0.0, 0.0]) == 1.0
    assert sign_flip_test([]) is None and sign_flip_test([1.0] * 21) is None


def test_sign_flips_by_hand() -> None:
    """|sum| of (+-1 +-2 +-3) is 6, 4, 2, 0, each twice."""
    assert sign_flip_test([1.0, 2.0, 3.0]) == 2 / 8
    assert sign_flip_test([-1.0, 2.0, 3.0]) == 4 / 8
    assert sign_flip_test([1.0, 2.0, -3.0]) == 1.0
    assert sign_flip_test([0.1] * 6) == 2 / 64


def test_sign_flips_against_a_slow_count() -> None:
    rng = random.Random(0)
    differences = [rng.gauss(0.4, 1) for _ in range(7)]
    far = 0
    for choice in range(2**7):
        total = sum(d if choice >> i & 1 else -d for i, d in enumerate(differences))
        far += abs(total) >= abs(sum(differences)) - 1e-9
    assert sign_flip_test(differences) == far / 2**7


def test_holm_by_hand() -> None:
    """0.01 x 4, 0.02 x 3, then 0.04 x 2 and 0.03 x 2 by rank: 0.03 x 2 = 0.06 is below 0.06 of before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.03]) == [0.03] and holm([]) == []


def test_too_few_seeds_are_told() -> None:
    assert "cannot be tested" in limits(1)
    assert "below 0.25" in limits(3) and "6 seeds can" in limits(3)
    assert "0.0625" in limits(5) and limits(6) == ""
