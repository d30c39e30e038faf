"""The claims of the papers, tested on a tiny model: writes docs/findings.md from the results of configs/studies/claims.

Take the results of a study into the page with `--take agrae=DIR` (its results.json and the figures that the page
shows), then run without options to write the page. docs/findings/*.json are these results as they were, and a test
compares the page with them.

A claim is a difference of two cells over the same seeds, tested by the sign-flip permutation test; Holm's
correction covers all differences of one paper. A claim is *seen* if its difference has the claimed sign and p < 0.05,
*not seen* if it has the other sign and p < 0.05, and else *cannot tell*. The claims and their measures were written
down before the results were in, and no setting of an algorithm was tuned. The comparison of all losses has five seeds
a cell, too few for that test, so it gives intervals and no verdicts.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from claims import AAPO, AGRAE, APMPO, Claim, Measure
from findings_text import INTRODUCTION, READINGS

from lit_rlvr.compare.significance import (
    LEVEL,
    detectable,
    holm,
    interquartile_mean,
    probability_of_improvement,
    sign_flip_test,
    stratified_interval,
)
from lit_rlvr.run.loggers import read_metrics

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "findings"


@dataclass(frozen=True)
class Part:
    """The section of a study on the page.

    Args:
        title: its heading.
        figures: those that it shows of each task.
        minutes: from its first cell to its report, two cells at a time; None = not kept.
        claims: what it tests; none = it compares every cell with the baseline.
    """

    title: str
    figures: tuple[str, ...]
    minutes: int | None
    claims: Sequence[Claim] = ()


STUDIES = {
    "agrae": Part("A-GRAE", ("pass_at_k", "entropy", "accuracy", "correct_count"), None, AGRAE),
    "apmpo": Part("APMPO", ("accuracy", "entropy", "power", "clip"), 127, APMPO),
    "aapo": Part("AAPO", ("zero_advantage", "accuracy"), 109, AAPO),
    "losses_text": Part("Eleven losses at an equal budget: sums of two numbers", ("reward", "entropy"), 21),
    "losses_image": Part("Eleven losses at an equal budget: counting in images", ("reward",), 48),
}


@dataclass(frozen=True)
class Finding:
    """The result of testing a claim.

    Args:
        more: mean of the cell that is claimed to have more, over seeds.
        less: mean of the other.
        difference: mean difference, and its 95 % bootstrap interval over seeds.
        p: of the sign-flip test; adjusted: after Holm's correction over the paper's claims.
        n: pairs of seeds. smallest: the difference that so many pairs show with a probability of 0.8, uncorrected.
    """

    claim: Claim
    more: float
    less: float
    difference: float
    interval: list[float]
    p: float
    adjusted: float
    n: int
    smallest: float

    @property
    def verdict(self) -> str:
        if self.claim.moot:
            return "cannot be tested here"
        if self.adjusted >= LEVEL:
            return "cannot tell"
        return "seen" if self.difference > 0 else "not seen"


def find(claims: Sequence[Claim], results: Mapping[str, Any]) -> list[Finding]:
    """Test all claims of a paper on the results of its study."""
    pairs = [pairs_of(claim, results) for claim in claims]
    raw = [sign_flip_test([x - y for x, y in values]) for values in pairs]
    adjusted = holm([1.0 if p is None else p for p in raw])
    found = []
    for claim, values, p, corrected in zip(claims, pairs, raw, adjusted, strict=True):
        differences = [x - y for x, y in values]
        assert p is not None, f"{claim.says}: no seed has both"
        interval = stratified_interval(lambda tasks: np.mean(tasks[0], -1), [differences])
        spread = stdev(differences) if len(differences) > 1 else float("nan")
        smallest = detectable(len(differences)) * spread if len(differences) > 1 else float("nan")
        means = mean(x for x, _ in values), mean(y for _, y in values)
        found.append(
            Finding(claim, *means, mean(differences), interval or [], p, corrected, len(differences), smallest)
        )
    return found


def pairs_of(claim: Claim, results: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return the claim's two numbers for each seed that has both."""
    task = results["tasks"][claim.task]
    before = task["before_pass_at_k"].get("multi_step_arithmetic", {})

    def values(cell: str | float, measure: Measure) -> dict[str, float]:
        if not isinstance(cell, str):
            return dict.fromkeys(seeds, cell)
        if cell == "before":  # the warm start is the same for all seeds
            return dict.fromkeys(seeds, before[measure.name.removeprefix("pass@")]["mean"])
        found = {seed: measure.of(run) for seed, run in task["cells"][cell]["by_seed"].items()}
        return {seed: value for seed, value in found.items() if value is not None}

    named = claim.less if claim.more == "before" else claim.more
    seeds = list(task["cells"][named]["by_seed"])
    more, less = values(claim.more, claim.measure), values(claim.less, claim.other or claim.measure)
    return [(more[seed], less[seed]) for seed in seeds if seed in more and seed in less]


def number(value: float) -> str:
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def section(name: str, results: Mapping[str, Any]) -> str:
    """Return a paper's section of the page."""
    part = STUDIES[name]
    unit, count = next(iter(results["budget"].items()))
    runs = [
        r for task in results["tasks"].values() for cell in task["cells"].values() for r in cell["by_seed"].values()
    ]
    minutes = sum(run["train_seconds"] for run in runs) / 60
    wall = f"; with warm starts, validation and evaluation {part.minutes} minutes on two cores" if part.minutes else ""
    lines = [
        f"## {part.title}",
        f"`lit-rlvr compare studies/claims/{name} --out DIR --jobs 2`: {len(runs)} runs of {count} {unit}, "
        f"{minutes:.0f} minutes of training on one core each{wall}.",
        *([claims_table(part.claims, results)] if part.claims else comparisons(results)),
        over_tasks([results]),
        collapses(results),
    ]
    lines += [READINGS[name].strip()] if name in READINGS else []
    lines += [
        f"![{name}: {task} {figure}](findings/{name}_{task}_{figure}.png)"
        for task, figure in pictures(name, results, part.figures)
    ]
    return "\n\n".join(lines)


def claims_table(claims: Sequence[Claim], results: Mapping[str, Any]) -> str:
    """Return a table of the claims with their numbers and verdicts."""
    return "\n".join([
        "| claim | in the paper | measured | here | difference [95 %] | n | p, Holm | verdict |",
        "|---|---|---|---|---|---|---|---|",
        *(
        f"| {f.claim.says} | {f.claim.where} | {f.claim.measure.name} | {label(f.claim.more)} {number(f.more)}, "
        f"{label(f.claim.less)} {number(f.less)} | {number(f.difference)} [{', '.join(map(number, f.interval))}]"
        f"{f', could show {number(f.smallest)}' if f.verdict == 'cannot tell' else ''} | {f.n} | "
        f"{f.p:.3f}, {f.adjusted:.3f} | **{f.verdict}**{f': {f.claim.moot}' if f.claim.moot else ''} |"
        for f in find(claims, results)
        ),
    ])  # fmt: skip


def comparisons(results: Mapping[str, Any]) -> list[str]:
    """Return for each task every cell's metric at the end, and its difference from the baseline in the same seed."""
    metric, baseline = results["metric"], results["baseline"]
    tables = []
    for task in results["tasks"].values():
        k, before = largest(task["before_pass_at_k"])
        rows = [
            f"| cell | {metric} [95 %] | minus {label(baseline)}'s in the same seed [95 %] | {k} | "
            "entropy, last quarter | optimizer steps | n |",
            "|---|---|---|---|---|---|---|",
            f"| before training | {number(task['before']['mean'])} | | {before} | | | |",
        ]
        base = task["cells"][baseline]["values"]
        for name, cell in sorted(task["cells"].items(), key=lambda item: -item[1]["mean"]):
            values = cell["values"]
            both = [values[seed] - base[seed] for seed in values if seed in base]
            entropy = mean(run["quarters"]["rollout/entropy"][3] for run in cell["by_seed"].values())
            rows.append(
                f"| {label(name)} | {with_interval(list(values.values()))} | "
                f"{'' if name == baseline else with_interval(both)} | {largest(cell['pass_at_k'])[1]} | "
                f"{number(entropy)} | {cell['used']['steps']['mean']:.0f} | {len(values)} |"
            )
        tables.append("\n".join(rows))
    return tables


def largest(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> tuple[str, str]:
    """Return the name and mean of pass@k at the largest k, of the first validation set."""
    k, values = max(next(iter(found.values())).items(), key=lambda item: int(item[0]))
    return f"pass@{k}", number(values["mean"])


def collapses(results: Mapping[str, Any]) -> str:
    """Return how many runs of each cell ended below half of their best validation accuracy."""
    from scipy.stats import binomtest

    runs: dict[str, list[bool]] = {}
    for task in results["tasks"].values():
        for name, cell in task["cells"].items():
            runs.setdefault(name, []).extend(
                run["last"]["val/accuracy"] < run["best"] / 2 for run in cell["by_seed"].values()
            )
    count = len(next(iter(runs.values())))
    none = binomtest(0, count).proportion_ci()
    collapsed = ", ".join(f"{sum(ends)} of {label(name)}" for name, ends in runs.items() if any(ends))
    return (
        f"Of {count} runs of a cell these collapsed, which means that they ended below half of their best validation "
        f"accuracy: {collapsed or 'none of any'}. For none of {count} the 95 % interval of the rate is "
        f"[0, {none.high:.2f}] (Clopper and Pearson)."
    )


def with_interval(values: Sequence[float]) -> str:
    """Return a mean over seeds and its 95 % bootstrap interval."""
    interval = stratified_interval(lambda tasks: np.mean(tasks[0], -1), [values])
    return f"{number(mean(values))} [{', '.join(map(number, interval or []))}]"


def over_tasks(studies: Sequence[Mapping[str, Any]]) -> str:
    """Compare all tasks of several studies with the same cells together, as Agarwal et al. 2021 do."""
    tasks = [task["cells"] for results in studies for task in results["tasks"].values()]
    baseline = studies[0]["baseline"]
    scores = {name: [list(cells[name]["values"].values()) for cells in tasks] for name in tasks[0]}
    rows = [
        f"| cell | interquartile mean [95 %] | probability that a run is better than one of {label(baseline)} [95 %] |",
        "|---|---|---|",
    ]
    for name, ours in sorted(scores.items(), key=lambda item: -float(interquartile_mean(item[1]))):
        middle = stratified_interval(interquartile_mean, ours) or []
        row = f"| {label(name)} | {number(float(interquartile_mean(ours)))} [{', '.join(map(number, middle))}] | "
        if name != baseline:
            better = float(probability_of_improvement(ours, scores[baseline]))
            around = stratified_interval(probability_of_improvement, ours, scores[baseline]) or []
            row += f"{number(better)} [{', '.join(map(number, around))}] "
        rows.append(f"{row}|")
    return "\n".join(rows)


def label(cell: str | float) -> str:
    return cell.replace("_", " ") if isinstance(cell, str) else "constant"


def pictures(name: str, results: Mapping[str, Any], figures: Sequence[str]) -> list[tuple[str, str]]:
    found = [(task, figure) for task in results["tasks"] for figure in figures]
    return [(t, f) for t, f in found if (RESULTS / f"{name}_{t}_{f}.png").is_file()]


def page() -> str:
    """Return docs/findings.md."""
    found = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in STUDIES
        if (RESULTS / f"{name}.json").is_file()
    }
    parts = [INTRODUCTION.strip(), *(section(name, results) for name, results in found.items())]
    if len(losses := [results for name, results in found.items() if not STUDIES[name].claims]) > 1:
        parts += ["## Eleven losses: both tasks together", over_tasks(losses), READINGS["losses"].strip()]
    return "\n\n".join(parts) + "\n"


def validations(run: Path) -> dict[str, float]:
    """Return optimizer step -> validation accuracy, for each validation of a run."""
    rows = read_metrics(run / "metrics.csv")
    return {str(step): round(row["val/accuracy"], 6) for step, row in rows.items() if "val/accuracy" in row}


def take(name: str, folder: Path) -> None:
    """Copy a study's results and the page's figures."""
    RESULTS.mkdir(exist_ok=True)
    results = json.loads((folder / "results.json").read_text())
    for task, found in results["tasks"].items():
        for cell, values in found["cells"].items():
            for seed, run in values["by_seed"].items():
                run["validations"] = validations(folder / "runs" / task / cell / f"seed-{seed}")
    (RESULTS / f"{name}.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")
    for task in results["tasks"]:
        for figure in STUDIES[name].figures:
            path = folder / "figures" / task / f"{figure}.png"
            if path.is_file():
                shutil.copy(path, RESULTS / f"{name}_{task}_{figure}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--take", nargs="*", default=[], metavar="NAME=DIR", help="results of studies to show from now on"
    )
    for item in parser.parse_args().take:
        name, _, folder = item.partition("=")
        take(name, Path(folder))
    (DOCS / "findings.md").write_text(page())


if __name__ == "__main__":
    main()
