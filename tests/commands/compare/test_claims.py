"""Claims of the papers on GPUs: the rule of verdict by hand, values of results, and the shipped claims."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_rlvr.commands.compare.claims import PrintedClaim, claims_section, decide, lacking_pairs
from lit_rlvr.commands.compare.printed import load_printed
from lit_rlvr.commands.compare.significance import least_pairs, sign_flip_test, smaller_test, t_interval
from lit_rlvr.commands.compare.study import BEFORE, load_study
from lit_rlvr.commands.compare.verdicts import SMALLER_THAN_PRINTED, paired_differences
from lit_rlvr.configs import config_folder
from lit_rlvr.errors import UserError

FOLDER = config_folder() / "printed"
CLAIMED = [str(path.relative_to(FOLDER).with_suffix("")) for path in sorted(FOLDER.glob("*/*.yaml"))]
CLAIMED = [name for name in CLAIMED if load_printed(name).claims]
BASE = [0.30 + 0.001 * seed for seed in range(10)]
CELLS = {
    "grpo": BASE,
    "better": [x + 0.05 + 0.01 * (k % 3) for k, x in enumerate(BASE)],
    "worse": [x - 0.05 + 0.001 * (k % 2) for k, x in enumerate(BASE)],
    "same": [x + 0.01 * (-1) ** k for k, x in enumerate(BASE)],
}


def results(cells: dict[str, list[float]], seeds: int = 10) -> dict[str, Any]:
    """Results of one task, where each cell has these pass@1 on the suite `a`, and twice as much on `b`."""
    made = {
        name: {
            "by_seed": {
                str(seed): {
                    "suites": {"a": {"pass@1": x}, "b": {"pass@1": 2 * x}},
                    "quarters": {"rollout/reward": [0.0, 0.0, 0.0, x]},
                    "loss_variance": x / 100,
                }
                for seed, x in enumerate(found[:seeds])
            }
        }
        for name, found in cells.items()
    }
    before = {"math": {"suites": {"a": {"pass@1": {"mean": 0.25}}, "b": {"pass@1": {"mean": 0.35}}}}}
    return {"tasks": {"t": {"cells": made, "before_suites": before}}}


def claim(more: str | float, less: str | float = "grpo", **changes: Any) -> PrintedClaim:
    asked = {"says": str(more), "task": "t", "metric": "pass@1", "suite": "a", "primary": True} | changes
    return PrintedClaim(where="1", more=more, less=less, **asked)


FOUR = [claim("better"), claim("worse"), claim("same"), claim("same", printed=0.01)]


def test_the_four_verdicts_are_hand_computed() -> None:
    """Ten differences of one sign have p = 2 / 1024, and 8 / 1024 as the smallest of four. Differences of 0.01 and
    -0.01 in turn have a deviation of 0.01 sqrt(10 / 9), so t is -3 for 0.01, and p 0.0075 with 9 degrees of freedom."""
    decided = decide(FOUR, results(CELLS))
    assert [d.verdict for d in decided] == ["seen", "not seen", "cannot tell", "smaller than printed"]
    better, worse, same, smaller = (d.result for d in decided)
    assert None not in (better, worse, same, smaller)
    assert (better.p, better.adjusted) == pytest.approx((2 / 1024, 8 / 1024)) and better.below is None
    assert better.difference == pytest.approx(0.059) and better.n == 10
    assert better.interval == pytest.approx([0.059 - 0.00626, 0.059 + 0.00626], abs=1e-4), "2.262 s / sqrt(10)"
    assert worse.adjusted == pytest.approx(8 / 1024) and worse.difference == pytest.approx(-0.0495)
    assert same.adjusted == 1.0 and same.could_show == pytest.approx(0.0105, abs=0.001)
    assert smaller.below == pytest.approx(0.00748, abs=1e-5) and smaller.difference == pytest.approx(0)


def test_holm_counts_primary_claims_alone() -> None:
    """Two values that the printed size is compared with double its p; exploratory claims are in neither correction."""
    others = [claim("same", printed=0.01, primary=False), *[claim("worse", primary=False)] * 20]
    decided = decide([*others, *FOUR, claim("same", printed=0.01)], results(CELLS))
    primary, exploratory = decided[:5], decided[5:]
    assert [d.verdict for d in primary] == ["seen", "not seen", "cannot tell", *["smaller than printed"] * 2]
    assert primary[0].result is not None and primary[0].result.adjusted == pytest.approx(10 / 1024)
    assert primary[3].result is not None and primary[3].result.below == pytest.approx(2 * 0.00748, abs=2e-5)
    assert {d.verdict for d in exploratory} == {"exploratory"} and len(exploratory) == 21
    assert exploratory[0].result is not None and exploratory[0].result.below == pytest.approx(0.00748, abs=1e-5)


def test_too_few_seeds_are_one_line() -> None:
    """2 / 2^n x 4 is 0.0625 for 7 seeds and 0.03125 for 8."""
    few = decide(FOUR, results(CELLS, 7))
    assert lacking_pairs(few) == [
        "Too few seeds: sign flips need 8 pairs to reach 0.05 among 4 primary claims, and the results have 7."
    ]
    assert lacking_pairs(few)[0] in claims_section(few) and few[0].verdict == "cannot tell"
    enough = decide(FOUR, results(CELLS, 8))
    assert (lacking_pairs(enough), "Too few" in claims_section(enough), enough[0].verdict) == ([], False, "seen")
    assert lacking_pairs(decide([claim("better", primary=False)], results(CELLS, 1))) == []


def test_too_few_pairs_show_nothing_and_make_nothing_smaller() -> None:
    """Two pairs can have a t-test with p < 0.05, but three primary claims need seven of them."""
    three = [claim("same", printed=1.0), claim("same"), claim("better")]
    for pairs, verdict, shows in (
        (2, "cannot tell", False),
        (6, "cannot tell", False),
        (7, SMALLER_THAN_PRINTED, True),
    ):
        first, second, _ = decide(three, results(CELLS, pairs))
        assert first.result.below < 0.05
        assert first.verdict == verdict and second.verdict == "cannot tell"
        assert ("(could show 0.0" in second.row()[-1]) == shows == (second.as_data()["could_show"] is not None)


def test_nan_is_no_difference() -> None:
    with pytest.raises(AssertionError, match="NaN would give p = 0"):
        paired_differences([[(1.0, 0.5), (float("nan"), 0.5)]], [None])


def test_what_no_run_has_is_not_too_few_seeds() -> None:
    """It counts in the correction all the same: with ten seeds, two claims have enough."""
    none = decide([claim("better", metric="pass@4"), claim("better")], results(CELLS))
    assert (none[0].result, none[0].verdict, none[0].as_data()["n"]) == (None, "cannot tell", 0)
    assert lacking_pairs(none) == ["better: no pair of runs has pass@4, a."]
    assert len(lacking_pairs(decide([claim("better", metric="pass@4"), claim("better")], results(CELLS, 6)))) == 2
    assert lacking_pairs(decide([claim("better", metric="pass@4", primary=False)], results(CELLS))) != []


@pytest.mark.parametrize(("comparisons", "pairs"), [(1, 6), (2, 7), (3, 7), (4, 8), (10, 9)])
def test_the_fewest_pairs_are_those_that_sign_flips_need(comparisons: int, pairs: int) -> None:
    assert least_pairs(comparisons) == pairs
    enough, few = (sign_flip_test([1.0 + k for k in range(n)]) for n in (pairs, pairs - 1))
    assert comparisons * enough <= 0.05 < comparisons * few


def test_equal_differences_are_larger_or_smaller_than_a_size() -> None:
    assert smaller_test([0.25] * 3, 0.25) == 1.0 and smaller_test([0.25] * 3, 0.5) == 0.0
    assert smaller_test([0.01, -0.01] * 5, 0.01) == pytest.approx(0.00748, abs=1e-5)
    assert t_interval([1.0]) is None and t_interval([1.0, 3.0]) == pytest.approx([2 - 12.706, 2 + 12.706], abs=1e-3)
    assert paired_differences([[], [(1.0, 0.5)]], [None, 1.0])[0] is None, "a claim without pairs"


def test_values_come_from_suites_training_and_the_start() -> None:
    found = results({"grpo": [0.30, 0.31], "same": [0.40, 0.42]})
    assert claim("same").pairs(found) == [(0.40, 0.30), (0.42, 0.31)]
    assert claim("same", suite="b").pairs(found) == [(0.80, 0.60), (0.84, 0.62)]
    assert claim("same", suite="Avg.", suites=["a", "b"]).pairs(found)[0] == pytest.approx((0.60, 0.45))
    assert claim(BEFORE).pairs(found) == [(0.25, 0.30), (0.25, 0.31)]
    assert claim("same", BEFORE, suite="Avg.", suites=["a", "b"]).pairs(found)[0] == pytest.approx((0.60, 0.30))
    assert claim("same", 0.5, suite=None, metric="rollout/reward").pairs(found) == [(0.40, 0.5), (0.42, 0.5)]
    assert claim("grpo", "same", suite=None, metric="loss_variance").pairs(found)[0] == pytest.approx((0.003, 0.004))
    del found["tasks"]["t"]["cells"]["grpo"]["by_seed"]["0"]
    assert claim("same").pairs(found) == [(0.42, 0.31)], "seeds that both have"
    found["tasks"]["t"].pop("before_suites")
    assert claim(BEFORE).pairs(found) == [] and claim("same", metric="train/omega", suite=None).pairs(found) == []


def test_the_printed_size_is_that_of_the_tables(tmp_path: Path) -> None:
    tables = [
        {
            "task": "t",
            "metric": "pass@1",
            "columns": ["a", "b", "Avg."],
            "rows": {"grpo": [30, 40, 35.0], "mine": [31.5, 39, 35.2]},
        },
        {"task": "t", "suite": "c", "columns": ["pass@1", "pass@64"], "rows": {"grpo": [1, 2], "mine": [4, 7.5]}},
    ]

    def asked(more: str, less: str, suite: str, metric: str = "pass@1", **changes: Any) -> PrintedClaim:
        given = {"says": "s", "where": "w", "task": "t", "suite": suite, "metric": metric, "more": more, "less": less}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"study": "s", "tables": tables, "claims": [given | changes]}))
        return load_printed(str(path)).claims[0]

    assert asked("mine", "grpo", "a").printed == pytest.approx(0.015)
    assert asked("mine", "grpo", "b").printed is None, "the table has the other sign"
    assert asked("grpo", "mine", "b").printed == pytest.approx(0.01)
    assert asked("mine", "grpo", "c", "pass@64").printed == pytest.approx(0.055)
    assert asked("mine", "grpo", "a", printed=0.5).printed == 0.5
    assert asked("mine", "other", "a").printed is None
    average = asked("mine", "grpo", "Avg.")
    assert (average.printed, average.suites) == (pytest.approx(0.002), ["a", "b"])
    with pytest.raises(UserError, match=r"no table has the column Avg\. of t, pass@4"):
        asked("mine", "grpo", "Avg.", "pass@4")
    with pytest.raises(UserError, match=r"form of the shipped tables: .*sais"):
        asked("mine", "grpo", "a", sais="s")


@pytest.mark.parametrize("name", CLAIMED)
def test_shipped_claims_belong_to_their_study(name: str) -> None:
    paper = load_printed(name)
    study = load_study(paper.study)
    primary = [claim for claim in paper.claims if claim.primary]
    assert 0 < len(primary) <= 3 and len(study.seeds) >= max(5, least_pairs(len(primary)))
    assert len({claim.says for claim in paper.claims}) == len(paper.claims)
    assert all(found.more != found.less for found in paper.claims)
