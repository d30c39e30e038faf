"""The claims that a paper's study decides: their values in its results, and their verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from lit_rlvr.commands.compare.significance import LEVEL, MOST_PAIRS, POWER, RESAMPLES, least_pairs, p_text
from lit_rlvr.commands.compare.study import BEFORE
from lit_rlvr.commands.compare.verdicts import SMALLER_THAN_PRINTED, PairedDifference, paired_differences
from lit_rlvr.evaluation.results import markdown_table

AVERAGE = "Avg."
"""Name of the average over a table's suites."""


@dataclass(frozen=True)
class PrintedClaim:
    """A difference that a paper claims: a metric of cell `more` exceeds that of cell `less` in the same seed.

    Args:
        says: the claim, in few words.
        where: where the paper makes it.
        task: task of the study.
        metric: a metric of the suite, such as `pass@256`; without a suite the mean of a metric of training over its
            last quarter, such as `rollout/reward`, or `loss_variance`.
        more, less: two cells; `before training` = the model that training starts from, evaluated once and taken as
            exact; a number = a constant.
        suite: a suite of the study, or `Avg.` for the mean over those of the printed table.
        printed: the difference that the paper prints, in the metric's unit; None = that of the printed table with both
            rows, if there is one.
        primary: True = it has a verdict and counts in Holm's correction; False = it is exploratory.
        suites: the suites that `Avg.` stands for.
    """

    says: str
    where: str
    task: str
    metric: str
    more: str | float
    less: str | float
    suite: str | None = None
    printed: float | None = None
    primary: bool = False
    suites: list[str] = field(default_factory=list)

    @property
    def measure(self) -> str:
        """What the claim is about, for tables."""
        if self.suite is not None:
            return f"{self.metric}, {self.suite}"
        if "/" in self.metric:
            return f"{self.metric}, last quarter of training"
        return self.metric

    def pairs(self, results: Mapping[str, Any]) -> list[tuple[float, float]]:
        """Return the claim's two values for each seed that has both, from results.json."""
        task = results["tasks"][self.task]
        seeds = list(dict.fromkeys(seed for cell in task["cells"].values() for seed in cell["by_seed"]))

        def values(cell: str | float) -> dict[str, float | None]:
            if not isinstance(cell, str):
                return dict.fromkeys(seeds, float(cell))
            if cell == BEFORE:
                return dict.fromkeys(seeds, self._before(task))
            by_seed = {}
            for seed, run in task["cells"][cell]["by_seed"].items():
                by_seed[seed] = self._value(run)
            return by_seed

        more = values(self.more)
        less = values(self.less)
        by_seed = ((more.get(seed), less.get(seed)) for seed in seeds)
        pairs = []
        for x, y in by_seed:
            if x is not None and y is not None:
                pairs.append((x, y))
        return pairs

    @property
    def averaged(self) -> list[str]:
        """The suites whose metric the claim is about; none for a metric of training."""
        return self.suites or ([] if self.suite is None else [self.suite])

    def _value(self, run: Mapping[str, Any]) -> float | None:
        if self.averaged:
            values = []
            for suite in self.averaged:
                values.append(run["suites"].get(suite, {}).get(self.metric))
            return complete_mean(values)
        if self.metric in run["quarters"]:
            value = run["quarters"][self.metric][-1]
        else:
            value = run.get(self.metric)
        if value is None:
            return None
        return float(value)

    def _before(self, task: Mapping[str, Any]) -> float | None:
        tables = []
        for table in task.get("before_suites", {}).values():
            tables.append(table["suites"])
        means = []
        for suite in self.averaged:
            spread = next((table[suite].get(self.metric) for table in tables if suite in table), None)
            means.append(spread and spread["mean"])
        return complete_mean(means)


def complete_mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a value is missing, or without any."""
    present = [value for value in values if value is not None]
    if present and len(present) == len(values):
        return mean(present)
    return None


@dataclass(frozen=True)
class DecidedClaim:
    """A claim with its result.

    Args:
        claim: the printed claim.
        result: the measured differences; None if no seed has both values.
    """

    claim: PrintedClaim
    result: PairedDifference | None

    @property
    def verdict(self) -> str:
        """The verdict on the claim, or that it is exploratory."""
        if not self.claim.primary:
            return "exploratory"
        if self.result is None:
            return "cannot tell"
        return self.result.reading

    def as_data(self) -> dict[str, Any]:
        """Return the claim and its result for JSON."""
        claim = self.claim
        result = self.result
        claimed = {}
        for name in ("says", "where", "task", "more", "less", "printed"):
            claimed[name] = getattr(claim, name)
        data: dict[str, Any] = {**claimed, "measure": claim.measure, "verdict": self.verdict, "n": 0}
        if result is not None:
            data |= {
                "n": result.n,
                "difference": result.difference,
                "interval": result.interval,
                "p": result.p,
                "p_holm": result.adjusted if claim.primary else None,
                "p_as_large_as_printed": result.below,
                "could_show": result.could_show,
            }
        return data

    def row(self) -> list[str]:
        """Return the claim's row of the table."""
        claim = self.claim
        result = self.result
        printed = "-" if claim.printed is None else f"{claim.printed:+.3g}"
        if claim.primary:
            verdict = f"**{self.verdict}**"
        else:
            verdict = self.verdict
        if result is None:
            return [claim.says, claim.where, claim.measure, "-", "-", printed, "0", "-", verdict]
        if result.interval:
            interval = f" [{', '.join(f'{x:.3g}' for x in result.interval)}]"
        else:
            interval = ""
        p = p_text(result.p) + (f", {p_text(result.adjusted)}" if claim.primary else "")
        if self.verdict == "cannot tell" and result.could_show is not None:
            verdict += f" (could show {result.could_show:.3g})"
        if self.verdict == SMALLER_THAN_PRINTED and result.below is not None:
            verdict += f" (p {p_text(result.below)})"
        return [
            claim.says, claim.where, claim.measure,
            f"{claim.more} {result.more:.3g}, {claim.less} {result.less:.3g}",
            f"{result.difference:+.3g}{interval}", printed, str(result.n), p, verdict,
        ]  # fmt: skip


def decide(claims: Sequence[PrintedClaim], results: Mapping[str, Any]) -> list[DecidedClaim]:
    """Return the claims with their results: the primary ones, tested together, before the others, each alone."""
    groups = [[claim for claim in claims if claim.primary]]
    for claim in claims:
        if not claim.primary:
            groups.append([claim])
    decided: list[DecidedClaim] = []
    for group in groups:
        pairs = [claim.pairs(results) for claim in group]
        differences = paired_differences(pairs, [claim.printed for claim in group])
        decided += map(DecidedClaim, group, differences)
    return decided


def lacking_pairs(decided: Sequence[DecidedClaim]) -> list[str]:
    """Return lines about claims that no pair of runs measures, and about too few pairs for a verdict; usually none."""
    lines = []
    for d in decided:
        if d.result is None:
            lines.append(f"{d.claim.says}: no pair of runs has {d.claim.measure}.")
    primary = []
    for d in decided:
        if d.claim.primary:
            primary.append(d.result)
    counts = []
    for result in primary:
        if result is not None:
            counts.append(result.n)
    if counts and min(counts) < least_pairs(len(primary)):
        claims = "1 primary claim"
        if len(primary) > 1:
            claims = f"{len(primary)} primary claims"
        lines.append(
            f"Too few seeds: sign flips need {least_pairs(len(primary))} pairs to reach {LEVEL:g} among {claims}, and "
            f"the results have {min(counts)}."
        )
    return lines


RULE = f"""A claim's difference is that of two cells over the same seeds, in the metric's own unit, with Student's 95 %
interval. p is that of the two-sided sign-flip test, exact for up to {MOST_PAIRS} pairs, else over {RESAMPLES} random
choices of signs; the second value is after Holm's correction over the primary claims. *Seen*: the claimed sign and
corrected p < {LEVEL:g}; *not seen*: the other sign and corrected p < {LEVEL:g}; *{SMALLER_THAN_PRINTED}*: neither, but
a one-sided t-test rejects a difference as large as the printed one (p after Holm's correction); else *cannot tell*,
with the difference that as many pairs show with a probability of {POWER:g} in a single t-test, before the correction.
With too few pairs for sign flips to reach {LEVEL:g}, a claim is *cannot tell*, without that difference. Exploratory
claims have no verdict."""


def claims_section(decided: Sequence[DecidedClaim]) -> str:
    """Return the claims with their verdicts as Markdown."""
    header = ["claim", "in the paper", "measured", "ours", "difference [95 %]", "printed", "n", "p, Holm", "verdict"]
    table = markdown_table(header, [d.row() for d in decided])
    return "\n\n".join(["## Claims", " ".join(RULE.split()), *lacking_pairs(decided), table])
