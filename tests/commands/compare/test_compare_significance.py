"""p-values against tables, closed forms and an independent count."""

import math
import random
from itertools import product

import numpy as np
import pytest

from lit_rlvr.commands.compare.significance import (
    MOST_PAIRS,
    detectable,
    holm,
    interquartile_mean,
    paired_t_test,
    probability_of_improvement,
    sign_flip_test,
    stratified_band,
)


def test_the_paired_t_test_gives_hand_computed_values() -> None:
    """Differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, t = 0.2 / (0.1 / sqrt 3) = 3.4641 with 2 degrees of freedom,
    where P(|T| > t) = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12 / 14)."""
    assert paired_t_test([0.1, 0.2, 0.3]) == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-12)
    assert paired_t_test([-0.1, -0.2, -0.3]) == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-12)


def test_too_few_or_equal_differences_have_no_p_value() -> None:
    assert paired_t_test([]) is None and paired_t_test([0.5]) is None
    assert paired_t_test([0.25, 0.25, 0.25]) is None, "no spread to compare with"
    assert paired_t_test([0.0, 0.0]) == 1.0
    assert sign_flip_test([]) is None and sign_flip_test([1.0]) == 1.0
    assert sign_flip_test([math.inf, 1.0, 2.0]) is None, "not p = 0"


def test_the_sign_flip_test_counts_sums() -> None:
    """|sum| of (+-1 +-2 +-3) is 6, 4, 2, 0, each twice."""
    assert (sign_flip_test([1.0, 2.0, 3.0]), sign_flip_test([-1.0, 2.0, 3.0])) == (2 / 8, 4 / 8)
    assert (sign_flip_test([1.0, 2.0, -3.0]), sign_flip_test([0.1] * 6)) == (1.0, 2 / 64)


def slow_sign_flips(differences: list[int]) -> float:
    """Count the choices of signs whose sum is at least as far from 0, of whole numbers, which have no rounding."""
    far = [abs(sum(signs)) >= abs(sum(differences)) for signs in product(*((d, -d) for d in differences))]
    return sum(far) / len(far)


@pytest.mark.parametrize("pairs", range(1, 12))
def test_sign_flips_against_a_slow_count(pairs: int) -> None:
    """Small whole numbers have many equal sums; in tenths, thirds or millions these are equal but for rounding."""
    rng = random.Random(pairs)
    for _ in range(8):
        counts = [rng.randint(-4, 7) for _ in range(pairs)]
        for unit in (1.0, 0.1, 1 / 3, 1e-9, 3.7e6):
            assert sign_flip_test([unit * count for count in counts]) == slow_sign_flips(counts), (counts, unit)


def test_sign_flips_are_exact_for_up_to_forty_pairs() -> None:
    """Closed forms. Of n equal differences both ends count; of one that differs from all others by more than their sum,
    its own sign decides; powers of two have a different sum for every choice."""
    assert MOST_PAIRS == 40
    for pairs in (16, 17, 39, 40):
        assert sign_flip_test([0.1] * pairs) == 2 / 2**pairs
        near = [0.1] * (pairs - 1) + [-0.1]  # sums of at least n - 2 of n: both ends, and one sign wrong
        assert sign_flip_test(near) == (2 + 2 * pairs) / 2**pairs
    assert sign_flip_test([2.0**k for k in range(16)]) == 2 / 2**16
    ahead = [2.0**k for k in range(1, 16)] + [-1.0]  # the sums at least as far: the largest two and their opposites
    assert sign_flip_test(ahead) == 4 / 2**16
    assert sign_flip_test([0.3] * 20 + [-0.3] * 20) == 1.0 == sign_flip_test([0.0] * 40)


def test_sums_within_a_hundred_thousandth_of_the_largest_are_equal() -> None:
    """The sums of 1, 1 + d and -1 are 1 + d, 1 - d, 3 + d and -(...): the second is as far as the first if d is 0."""
    assert sign_flip_test([1.0, 1.0, -1.0]) == 1.0 == sign_flip_test([1.0, 1.0 + 1e-6, -1.0])
    assert sign_flip_test([1.0, -1.0, 1.0 + 1e-3]) == 6 / 8, "1 - d is nearer to 0"


@pytest.mark.parametrize("questions", [30, 100, 300, 1000, 1319])
def test_accuracies_in_float32_have_the_ties_of_their_counts(questions: int) -> None:
    """Metrics are logged in float32: without a tolerance of its size p was up to 40 % too small."""
    rng = random.Random(questions)
    for _ in range(20):
        pairs = [(rng.randint(questions // 3, questions // 2), rng.randint(-3, 8)) for _ in range(10)]
        accuracy = [(np.float32((n + more) / questions), np.float32(n / questions)) for n, more in pairs]
        differences = [float(x) - float(y) for x, y in accuracy]
        assert sign_flip_test(differences) == slow_sign_flips([more for _, more in pairs])


def test_more_pairs_are_drawn_with_a_stated_resolution() -> None:
    """A fixed generator; the smallest value counts the observed signs among the 10,000 drawn ones."""
    assert sign_flip_test([1.0] * 41) == 1 / 10_001
    rng = np.random.default_rng(3)
    differences = list(rng.normal(0.2, 1.0, 60))
    exact_enough = float(
        np.mean(
            [np.abs(rng.choice([-1.0, 1.0], (20_000, 60)) @ differences) >= abs(sum(differences)) for _ in range(10)]
        )
    )
    found = sign_flip_test(differences)
    assert found == sign_flip_test(differences) == pytest.approx(exact_enough, abs=0.015) and 0 < found < 1
    assert sign_flip_test([0.3] * 30 + [-0.3] * 30) == 1.0 == sign_flip_test([0.0] * 41)


def test_holm_gives_hand_computed_values() -> None:
    """0.01 x 4, 0.02 x 3, then 0.04 x 2 and 0.03 x 2 by rank: 0.03 x 2 = 0.06 is below 0.06 of before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert (holm([0.5, 0.9]), holm([0.03]), holm([])) == ([1.0, 1.0], [0.03], [])


def test_the_interquartile_mean_by_hand() -> None:
    """Of 0 to 7 the middle half is 2 to 5; tasks are pooled."""
    assert interquartile_mean([[7.0, 0.0, 3.0, 4.0], [1.0, 2.0, 6.0, 5.0]]) == 3.5
    assert interquartile_mean([[0.0, 1.0, 2.0, 100.0]]) == 1.5


def test_the_probability_of_improvement_counts_pairs() -> None:
    """6 of 9 pairs and a tie are 6.5 / 9; the second task has all of 1."""
    first, second = [[3.0, 5.0, 4.0], [9.0]], [[2.0, 4.0, 4.5], [1.0]]
    share = (1 + 0 + 0 + 1 + 1 + 1 + 1 + 0.5 + 0) / 9
    assert probability_of_improvement(first, second) == pytest.approx((share + 1) / 2)
    assert probability_of_improvement(second, first) == pytest.approx((1 - share) / 2)


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(25):
        low, high = stratified_band(interquartile_mean, [rng.normal(1.0, 1.0, 20), rng.normal(1.0, 2.0, 20)])
        inside += low <= 1.0 <= high
    assert 21 <= inside <= 25
    assert stratified_band(interquartile_mean, [[1.0], [1.0, 2.0]]) is None, "a single run has no interval"
    low, high = stratified_band(probability_of_improvement, [[2.0, 3.0]], [[0.0, 1.0]])
    assert low == high == 1.0


def test_the_detectable_difference_is_found_as_often_as_it_says() -> None:
    """Simulated; the usual table has 1.00 standard deviations for ten pairs and a power of 0.8."""
    assert detectable(10) == pytest.approx(1.0, abs=0.01) and detectable(2) == pytest.approx(11.55, abs=0.01)
    rng = np.random.default_rng(1)
    found = sum(paired_t_test(rng.normal(detectable(10), 1.0, 10)) < 0.05 for _ in range(400))
    assert 290 <= found <= 350
