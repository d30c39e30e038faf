"""The claims of the papers, tested on a tiny model: writes two pages from the results of configs/studies/claims.

docs/findings.md has the verdicts, research/findings.md all tables, figures and readings. Take the results of a study
into the pages with `--take agrae=DIR` (its results.json and the figures that the long page shows), then run without
options to write the pages. research/results/*.json are these results as they were, and a test compares the pages with
them.

A claim is a difference of two cells over the same seeds, tested by the exact sign-flip permutation test; Holm's
correction covers all registered differences of one paper. A claim is *seen* if its difference has the claimed sign and
p < 0.05, *not seen* if it has the other sign and p < 0.05, and else *cannot tell*. These claims, their measures and
rules were written down before the results were in. What was found afterwards is marked so: claims
without a verdict, a reading that differs from the registered verdict, and *smaller than printed*. The comparison of all
losses has five seeds a cell, too few for that test, so it gives intervals and no verdicts.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

from claims import AAPO, AGRAE, APMPO, GATE, MARGIN, MARGIN_6, REGIME, SET, Claim, Measure
from findings_numbers import (
    aapo_numbers,
    agrae_numbers,
    apmpo_numbers,
    best_numbers,
    ends_of,
    gate_numbers,
    image_numbers,
    is_collapsed,
    margin_numbers,
    mechanism_numbers,
    more_numbers,
    opening_numbers,
    p_value,
    regime_numbers,
    times_tokens,
    w_reinforce_numbers,
)
from findings_text import CHOICE_OF_RATES, INTRODUCTION, OPENING, READINGS, SHORT_LOSSES, SHORT_OPENING

from lit_rlvr.commands.compare.significance import p_text, t_interval
from lit_rlvr.commands.compare.study import Study, load_study
from lit_rlvr.commands.compare.verdicts import SMALLER_THAN_PRINTED, PairedDifference, paired_differences
from lit_rlvr.common.run_files import read_metrics

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DETAILS, SHORT_PAGE = HERE / "findings.md", HERE.parent / "docs/findings.md"
ACCURACY_CLAIMS = 7
"""The first of APMPO's registered claims, which are about accuracy."""


@dataclass(frozen=True)
class Part:
    """The section of a study on the page.

    Args:
        title: its heading.
        figures: those that it shows of each task.
        minutes: from its first cell to its report, two cells at a time; None = not kept.
        claims: what it tests; none = it compares every cell with the baseline.
        rates: the study whose results chose its learning rates.
        asks_for_collapses: its table has the end of every task and which of its runs collapsed.
        sums: how many numbers its sums have, if it has claims.
    """

    title: str
    figures: tuple[str, ...]
    minutes: int | None
    claims: Sequence[Claim] = ()
    rates: str = ""
    asks_for_collapses: bool = False
    sums: str = ""


STUDIES = {
    "agrae": Part("A-GRAE", ("pass_at_k", "entropy", "accuracy", "correct_count"), None, AGRAE, sums="3"),
    "apmpo": Part("APMPO", ("accuracy", "entropy", "power", "clip"), 127, APMPO, sums="3"),
    "apmpo_gate": Part("APMPO where ratios leave the clip", ("accuracy",), None, GATE, sums="2"),
    "aapo": Part("AAPO", ("zero_advantage", "accuracy"), 109, AAPO, sums="3"),
    "agrae_regime": Part(
        "A-GRAE where hard problems stay hard", ("accuracy",), None, REGIME, rates="agrae_regime_rates", sums="2 to 5"
    ),
    "aapo_margin": Part("AAPO's margin at equal steps", ("accuracy",), None, MARGIN, sums="3"),
    "aapo_margin_6": Part("AAPO's margin in groups of six", ("accuracy",), None, MARGIN_6, sums="3"),
    "losses_best": Part(
        "Eighteen losses, each at its best learning rate: sums of two numbers",
        (),
        None,
        rates="losses_rates",
    ),
    "losses_more": Part("Three more losses, each at its best learning rate", (), None, rates="losses_more_rates"),
    "w_reinforce": Part("Why W-REINFORCE collapses", (), None, asks_for_collapses=True),
    "losses_image": Part("Eleven losses at an equal budget: counting in images", ("reward",), 48),
}


@dataclass(frozen=True)
class Finding(PairedDifference):
    """The result of testing a claim.

    Args:
        by_task: its mean difference in each task.
    """

    claim: Claim
    by_task: list[float]

    @property
    def verdict(self) -> str:
        """The registered verdict; a claim over several tasks needs the same sign in each of them."""
        same_sign = len({difference > 0 for difference in self.by_task}) == 1
        return super().verdict if same_sign else "cannot tell"

    @property
    def now(self) -> str:
        """Return how to read the registered verdict in the light of the results."""
        if self.claim.now:
            return self.claim.now
        if self.reading == SMALLER_THAN_PRINTED and self.below is not None:
            return f"{SMALLER_THAN_PRINTED}, in this regime: {p_value(self.below)}"
        return self.verdict


def find(claims: Sequence[Claim], results: Mapping[str, Any]) -> list[Finding]:
    """Test the claims of a paper on the results of its study, and correct for their number.

    Args:
        claims: those that the correction covers; or one that was written afterwards, which nothing corrects.
    """
    by_task = [pairs_of(claim, results) for claim in claims]
    pairs = [[pair for pairs in tasks for pair in pairs] for tasks in by_task]
    tested = paired_differences(pairs, [claim.printed for claim in claims])
    found = []
    for claim, tasks, difference in zip(claims, by_task, tested, strict=True):
        assert difference is not None, f"{claim.says}: no seed has both"
        means = [mean(more - less for more, less in pairs) for pairs in tasks]
        found.append(Finding(**vars(difference), claim=claim, by_task=means))
    return found


def pairs_of(claim: Claim, results: Mapping[str, Any]) -> list[list[tuple[float, float]]]:
    """Return the claim's two numbers for each seed that has both, in each of its tasks."""
    tasks = results["tasks"]
    return [_pairs(claim, tasks[name]) for name in (tasks if claim.task is None else [claim.task])]


def _pairs(claim: Claim, task: Mapping[str, Any]) -> list[tuple[float, float]]:
    before = task["before_pass_at_k"].get("multi_step_arithmetic", {})

    def values(cell: str | float, measure: Measure) -> dict[str, float]:
        if not isinstance(cell, str):
            return dict.fromkeys(seeds, cell)
        if cell == "before":  # the warm start is the same for all seeds
            return dict.fromkeys(seeds, before[measure.name.removeprefix("pass@")]["mean"])
        found = {seed: measure.of(run) for seed, run in task["cells"][cell]["by_seed"].items()}
        return {seed: value for seed, value in found.items() if value is not None}

    named = next(cell for cell in (claim.more, claim.less) if isinstance(cell, str) and cell != "before")
    seeds = list(task["cells"][named]["by_seed"])
    more, less = values(claim.more, claim.measure), values(claim.less, claim.other or claim.measure)
    return [(more[seed], less[seed]) for seed in seeds if seed in more and seed in less]


def count_verdicts(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of how many registered claims of each paper have each verdict, and how they read now."""
    rows = ["| paper | registered verdicts | now |", "|---|---|---|"]
    for name, results in found.items():
        if registered := [claim for claim in STUDIES[name].claims if not claim.afterwards]:
            findings = find(registered, results)
            now = ["so by construction" if f.claim.by_construction else f.now.partition(":")[0] for f in findings]
            columns = [Counter(f.verdict for f in findings), Counter(now)]
            cells = ["; ".join(f"{n} {verdict}" for verdict, n in column.most_common()) for column in columns]
            rows.append(f"| {STUDIES[name].title} | {' | '.join(cells)} |")
    return "\n".join(rows)


def number(value: float) -> str:
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def read(name: str) -> dict[str, Any]:
    """Return the committed results of a study."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def own_study(name: str) -> Path:
    """Return the file of a study that needs a module of this folder, which need not exist."""
    return Path(__file__).with_name(f"{name}.yaml")


def load(name: str) -> Study:
    """Load a study of the page."""
    return load_study(str(own_study(name)) if own_study(name).is_file() else f"studies/claims/{name}")


def command(name: str) -> str:
    """Return the command that runs a study of the page."""
    here = own_study(name)
    there = f"lit-rlvr compare studies/claims/{name}"
    return f"cd research; lit-rlvr compare {here.name}" if here.is_file() else there


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
        f"`{command(name)} --out DIR --jobs 2`: {len(runs)} runs of {count} {unit}, "
        f"{minutes:.0f} minutes of training on one core each{wall}.",
        *(chosen_rates(part.rates) if part.rates else []),
        *(claims_tables(part.claims, results) or [(ends_table if part.asks_for_collapses else comparison)(results)]),
        *by_category(results),
        *([over_tasks(results)] if len(results["seeds"]) > 3 else []),  # fewer make no interval
        *([] if part.asks_for_collapses else [collapses(results)]),
    ]
    lines += [reading(name, results)] if name in READINGS else []
    lines += [
        f"![{name}: {task} {figure}](results/{name}_{task}_{figure}.png)"
        for task, figure in pictures(name, results, part.figures)
    ]
    return "\n\n".join(lines)


def reading(name: str, results: Mapping[str, Any]) -> str:
    """Return a study's reading with its numbers."""
    tasks, part = results["tasks"], STUDIES[name]
    accuracy = [f.now for f in find([c for c in part.claims if not c.afterwards], results)[:ACCURACY_CLAIMS]]
    found = by_claim(part.claims, results)
    numbers: Mapping[str, Callable[[], dict[str, str]]] = {
        "agrae": lambda: agrae_numbers(tasks["steps"], found),
        "apmpo": lambda: apmpo_numbers(tasks["steps"], accuracy, found),
        "aapo": lambda: aapo_numbers(tasks, found),
        "aapo_margin": lambda: margin_numbers(found),
        "aapo_margin_6": lambda: margin_numbers(found, "Groups of six: "),
        "apmpo_gate": lambda: gate_numbers(tasks, found),
        "agrae_regime": lambda: regime_numbers(tasks, found, best_rates(part.rates)),
        "w_reinforce": lambda: w_reinforce_numbers(tasks),
        "losses_best": lambda: best_numbers(results, learning_rates(name)),
        "losses_more": lambda: more_numbers(results),
        "losses_image": lambda: image_numbers(tasks["geometry"]),
    }
    return wrapped(READINGS[name].format(**numbers[name]()))


def by_claim(claims: Sequence[Claim], results: Mapping[str, Any]) -> dict[str, Finding]:
    """Return what a claim says -> its finding, for the registered claims and those that were written afterwards."""
    findings = find([claim for claim in claims if not claim.afterwards], results)
    findings += [find([claim], results)[0] for claim in claims if claim.afterwards]
    return {finding.claim.says: finding for finding in findings}


def opening(text: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a page's first screen with its numbers: what holds, what does not, and what cannot be said."""
    claimed = {name: results for name, results in found.items() if STUDIES[name].claims}
    findings = [by_claim(STUDIES[name].claims, results) for name, results in claimed.items()]
    together = {says: finding for part in findings for says, finding in part.items()}
    best = best_numbers(found["losses_best"], learning_rates("losses_best"))
    regime = regime_numbers(found["agrae_regime"]["tasks"], together, best_rates("agrae_regime_rates"))
    more = more_numbers(found["losses_more"])
    return wrapped(text.format(**opening_numbers(together, claimed, regime, best, more)))


def wrapped(text: str) -> str:
    """Return paragraphs and list items with lines of at most 120 characters."""
    paragraphs = [re.split(r"\n(?=- )", paragraph) for paragraph in text.strip().split("\n\n")]
    return "\n\n".join(
        "\n".join(
            fill(" ".join(part.split()), 120, subsequent_indent="  " * part.startswith("- "), break_on_hyphens=False)
            for part in parts
        )
        for parts in paragraphs
    )


def claims_tables(claims: Sequence[Claim], results: Mapping[str, Any]) -> list[str]:
    """Return a table of the registered claims, a line with those that hold by construction, and a table of the claims
    that were written afterwards; nothing without claims."""
    if not claims:
        return []
    registered = find([claim for claim in claims if not claim.afterwards], results)
    parts = ["\n".join([
        "| claim | in the paper | measured | here | difference [95 %] | n | p, Holm | registered verdict | now |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {row_start(f)}{could_show(f)} | {f.n} | {p_text(f.p)}, {p_text(f.adjusted)} | {f.verdict} | "
            f"{bold(f.now)} |"
            for f in registered
            if not f.claim.by_construction
        ),
    ])]  # fmt: skip
    if trivial := [f for f in registered if f.claim.by_construction]:
        listed = "; ".join(f"{f.claim.says} ({number(f.more)} against {number(f.less)}, {f.verdict})" for f in trivial)
        parts.append(f"Registered, but so by construction more than by learning: {listed}.")
    if later := [find([claim], results)[0] for claim in claims if claim.afterwards]:
        parts += ["Found afterwards, so without a verdict; only fresh seeds can give one:", "\n".join([
            "| claim | in the paper | measured | here | difference [95 %] | seeds with this sign | p | "
            "p of the smallest printed size or more |",
            "|---|---|---|---|---|---|---|---|",
            *(
                f"| {row_start(f)} | {sum(d > 0 for d in f.differences)} of {f.n} | {p_text(f.p)} | "
                f"{'' if f.below is None else p_value(f.below)} |"
                for f in later
            ),
        ])]  # fmt: skip
    return parts


def row_start(f: Finding) -> str:
    """Return a finding's claim, source, measure, means and difference, as cells of a table."""
    return (
        f"{f.claim.says} | {f.claim.where} | {f.claim.measure.name} | {label(f.claim.more)} {number(f.more)}, "
        f"{label(f.claim.less)} {number(f.less)} | {number(f.difference)} [{', '.join(map(number, f.interval))}]"
    )


def could_show(f: Finding) -> str:
    return f", could show {number(f.could_show)}" if f.verdict == "cannot tell" and f.could_show is not None else ""


def bold(reading: str) -> str:
    """Return a reading with its verdict in bold, without the reason behind the colon."""
    verdict, colon, reason = reading.partition(":")
    return f"**{verdict}**{colon}{reason}"


def comparison(results: Mapping[str, Any]) -> str:
    """Return a table of the cells: the metric at the end over all runs, its difference from the baseline's in the same
    task and seed, and what a generated token brings."""
    metric, baseline, tasks = results["metric"], results["baseline"], results["tasks"].values()
    k = max(int(k) for k in next(iter(next(iter(tasks))["before_pass_at_k"].values())))
    before = mean(task["before"]["mean"] for task in tasks)
    at_k = mean(pass_at(task["before_pass_at_k"], k) for task in tasks)
    rows = [
        f"| cell | {metric} [95 %] | minus {label(baseline)}'s in the same seed [95 %] | pass@{k} | "
        "entropy, last quarter | optimizer steps | thousand tokens | points per thousand tokens | n |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| before training | {number(before)} | | {number(at_k)} | | | | | |",
    ]
    cells = {name: [task["cells"][name] for task in tasks] for name in next(iter(tasks))["cells"]}
    for name, found in sorted(cells.items(), key=lambda item: -mean(cell["mean"] for cell in item[1])):
        values = [value for cell in found for value in cell["values"].values()]
        apart = [
            value - base["values"][seed]
            for cell, base in zip(found, cells[baseline], strict=True)
            for seed, value in cell["values"].items()
            if seed in base["values"]
        ]
        runs = [run for cell in found for run in cell["by_seed"].values()]
        entropy = mean(run["quarters"]["rollout/entropy"][3] for run in runs)
        steps, tokens = (mean(cell["used"][unit]["mean"] for cell in found) for unit in ("steps", "tokens"))
        rows.append(
            f"| {label(name)} | {with_interval(values)} | {'' if name == baseline else with_interval(apart)} | "
            f"{number(mean(pass_at(cell['pass_at_k'], k) for cell in found))} | {number(entropy)} | {steps:.0f} | "
            f"{tokens / 1000:.0f} | {100 * (mean(values) - before) / (tokens / 1000):.2f} | {len(values)} |"
        )
    return "\n".join(rows)


def chosen_rates(name: str) -> list[str]:
    """Return the table of the study that chose the learning rates."""
    return [CHOICE_OF_RATES.format(name=name), rates_table(name)]


def best_rates(name: str) -> dict[str, Any]:
    """Return a family of cells -> its results at each learning rate, of a study that chose them."""
    (families,) = read(name)["best_rates"].values()
    return dict(families)


def rates_of_families(name: str, cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a family of cells, which the last word of their names tells apart, -> its results at each learning rate.

    The best rate has the highest mean, and of equal ones is the lowest.
    """
    families: dict[str, Any] = {}
    for cell, rate in sorted(learning_rates(name).items(), key=lambda item: item[1]):
        values = {"lr": rate} | {key: cells[cell][key] for key in ("mean", "std", "n")}
        families.setdefault(cell.rpartition("_")[0], {"cells": {}})["cells"][cell] = values
    for family in families.values():
        family["best_lr"] = max(family["cells"].values(), key=lambda values: values["mean"])["lr"]
    return families


def rates_table(name: str) -> str:
    """Return the metric of every family of cells at each learning rate, the highest in bold."""
    families = best_rates(name)
    rates = sorted({cell["lr"] for family in families.values() for cell in family["cells"].values()})
    rows = [f"| cell | {' | '.join(map('{:g}'.format, rates))} |", "|---" * (1 + len(rates)) + "|"]
    for name, family in families.items():
        means = {cell["lr"]: f"{cell['mean']:.3f}" for cell in family["cells"].values()}
        means[family["best_lr"]] = f"**{means[family['best_lr']]}**"
        rows.append(f"| {label(name)} | {' | '.join(means[rate] for rate in rates)} |")
    return "\n".join(rows)


def learning_rates(study: str) -> dict[str, float]:
    """Return the learning rate of every cell of a study."""
    return {cell.name: cell.config["model"]["init_args"]["lr"] for cell in load(study).cells}


def ends_table(results: Mapping[str, Any]) -> str:
    """Return a table of every task's accuracy at the end, and how many of its runs collapsed: they ended below half of
    what they started from."""
    tasks = results["tasks"]
    starts = {name: task["before"]["mean"] for name, task in tasks.items()}
    rows = [
        f"| cell | {' | '.join(f'start {name} ({start:.2f})' for name, start in starts.items())} |",
        "|---" * (1 + len(tasks)) + "|",
    ]
    for name in next(iter(tasks.values()))["cells"]:
        ends = [(starts[task], list(found["cells"][name]["values"].values())) for task, found in tasks.items()]
        cells = [
            f"{', '.join(f'{value:.3f}' for value in values)}: {sum(value < start / 2 for value in values)} collapsed"
            for start, values in ends
        ]
        rows.append(f"| {label(name)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def by_category(results: Mapping[str, Any]) -> list[str]:
    """Return a table of the accuracy at the end in each category of the problems, with the difference from the
    baseline's in the same task and seed; nothing without categories."""
    start = f"{SET}/accuracy/"
    tasks, baseline = results["tasks"].values(), results["baseline"]
    cells = {name: [task["cells"][name]["by_seed"] for task in tasks] for name in next(iter(tasks))["cells"]}
    a_run = next(iter(cells[baseline][0].values()))["last"]
    categories = sorted(metric.removeprefix(start) for metric in a_run if metric.startswith(start))
    if not categories:
        return []
    rows = [f"| accuracy at the end (minus {label(baseline)}'s [95 %]) | {' | '.join(categories)} |"]
    rows += ["|---" * (1 + len(categories)) + "|"]
    for name, found in cells.items():
        columns = []
        for metric in (f"{start}{category}" for category in categories):
            values = [
                (run["last"][metric], base[seed]["last"][metric])
                for runs, base in zip(found, cells[baseline], strict=True)
                for seed, run in runs.items()
            ]
            apart = "" if name == baseline else f" ({with_interval([own - other for own, other in values])})"
            columns.append(f"{mean(own for own, _ in values):.3f}{apart}")
        rows.append(f"| {label(name)} | {' | '.join(columns)} |")
    return ["\n".join(rows)]


def pass_at(found: Mapping[str, Mapping[str, Mapping[str, float]]], k: int) -> float:
    """Return the mean of pass@k of the first validation set."""
    return next(iter(found.values()))[str(k)]["mean"]


def collapses(results: Mapping[str, Any]) -> str:
    """Return how many runs of each cell ended below half of their best validation accuracy."""
    from scipy.stats import binomtest

    runs: dict[str, list[bool]] = {}
    for task in results["tasks"].values():
        for name, cell in task["cells"].items():
            runs.setdefault(name, []).extend(map(is_collapsed, cell["by_seed"].values()))
    count = len(next(iter(runs.values())))
    none = binomtest(0, count).proportion_ci()
    collapsed = ", ".join(f"{sum(ends)} of {label(name)}" for name, ends in runs.items() if any(ends))
    found = f"Of {count} runs of each cell {collapsed or 'none'} did; "
    return (
        f"A run has collapsed if it ends below half of its best validation accuracy. {found}where none did, the 95 % "
        f"interval of the rate is [0, {none.high:.2f}] (Clopper and Pearson)."
    )


def with_interval(values: Sequence[float]) -> str:
    """Return a mean over seeds and its 95 % interval by Student's t."""
    return f"{number(mean(values))} [{', '.join(map(number, t_interval(values) or []))}]"


def over_tasks(results: Mapping[str, Any]) -> str:
    """Compare the cells over all tasks of a study, as Agarwal et al. 2021 do."""
    baseline = results["baseline"]
    found = results["overall"]
    if not found:  # a single task
        (task,) = results["tasks"].values()
        found = {name: cell | cell.get("versus_baseline", {}) for name, cell in task["cells"].items()}
    rows = [
        f"| cell | interquartile mean [95 %] | probability that a run is better than one of {label(baseline)} [95 %] |",
        "|---|---|---|",
    ]
    for name, cell in sorted(found.items(), key=lambda item: -item[1]["iqm"]["value"]):
        better = "" if name == baseline else f"{given_interval(cell['improvement'])} "
        rows.append(f"| {label(name)} | {given_interval(cell['iqm'])} | {better}|")
    return "\n".join(rows)


def given_interval(statistic: Mapping[str, Any]) -> str:
    """Return a statistic in results.json and its 95 % interval."""
    return f"{number(statistic['value'])} [{', '.join(map(number, statistic['ci95']))}]"


def label(cell: str | float) -> str:
    return cell.replace("_", " ") if isinstance(cell, str) else "constant"


def pictures(name: str, results: Mapping[str, Any], figures: Sequence[str]) -> list[tuple[str, str]]:
    found = [(task, figure) for task in results["tasks"] for figure in figures]
    return [(t, f) for t, f in found if (RESULTS / f"{name}_{t}_{f}.png").is_file()]


def all_results() -> dict[str, dict[str, Any]]:
    """Return the committed results of every study of the pages."""
    return {name: read(name) for name in STUDIES if (RESULTS / f"{name}.json").is_file()}


def short_page() -> str:
    """Return docs/findings.md."""
    found = all_results()
    parts = [
        opening(SHORT_OPENING, found),
        verdicts_table(found),
        losses_text(),
        losses_table([found["losses_best"], found["losses_more"]]),
    ]
    return "\n\n".join(parts) + "\n"


def losses_text() -> str:
    """Return the text above the table of losses."""
    links = {"best": link("losses_best", "eighteen losses"), "more": link("losses_more", "three more")}
    return wrapped(SHORT_LOSSES.format(**links))


def link(name: str, text: str) -> str:
    """Return a link from the short page to the section of a study."""
    anchor = re.sub(r"[^a-z0-9 -]", "", STUDIES[name].title.lower()).replace(" ", "-")
    return f"[{text}](../research/findings.md#{anchor})"


def verdicts_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of the registered claims that could be tested."""
    rows = ["| claim | verdict | difference [95 %] | of | sums of | pairs | detail |", "|---|---|---|---|---|---|---|"]
    for name, results in found.items():
        for f in find([claim for claim in STUDIES[name].claims if not claim.afterwards], results):
            now, _, reason = f.now.partition(": ")
            if f.claim.by_construction or now.startswith(("cannot be tested", "not the paper's")):
                continue
            later = "" if now == f.verdict else f"; {reason if f.claim.now else SMALLER_THAN_PRINTED.partition(',')[0]}"
            measured = re.sub("the validations at steps .*", "three validations", f.claim.measure.name)
            paper = STUDIES[name].title.split()[0].removesuffix("'s")
            rows.append(
                f"| {f.claim.says} | {f.verdict}{later} | {signed_interval(f.differences)} | {measured} | "
                f"{STUDIES[name].sums} | {f.n} | {link(name, paper)} |"
            )
    return "\n".join(rows)


def losses_table(studies: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of each loss's lead over GRPO in the same study, the largest first."""
    rows = ["| loss | minus GRPO's [95 %] | pairs | times GRPO's tokens |", "|---|---|---|---|"]
    found = []
    for results in studies:
        names = [name for name in next(iter(results["tasks"].values()))["cells"] if name != results["baseline"]]
        _, apart = ends_of(results, [results["baseline"], *names])
        found += [(mean(apart[name]), name, apart[name], times_tokens(results, name)) for name in names]
    rows += [
        f"| {label(name)} | {signed_interval(apart)} | {len(apart)} | {tokens} |"
        for _, name, apart, tokens in sorted(found, reverse=True)
    ]
    return "\n".join(rows)


def signed_interval(values: Sequence[float]) -> str:
    """Return a mean difference and its 95 % interval with signs."""
    return f"{mean(values):+.3f} [{', '.join(f'{bound:+.3f}' for bound in t_interval(values) or [])}]"


def page() -> str:
    """Return research/findings.md."""
    found = all_results()
    parts = [
        opening(OPENING, found),
        INTRODUCTION.strip(),
        count_verdicts(found),
        *(section(name, results) for name, results in found.items()),
    ]
    if (RESULTS / "mechanism.json").is_file():
        parts.append(where_losses_differ(read("mechanism")))
    return "\n\n".join(parts) + "\n"


def where_losses_differ(found: Mapping[str, Any]) -> str:
    """Return the section on the losses' gradients, from the results of mechanism.py."""
    settings = found["settings"]
    first = "| learning rate, minibatches x prompts | "
    own = [first + " | ".join(settings) + " |", "|---|" + "---|" * len(settings)]
    for key, says in (
        ("clip_high", "clipped above, %"),
        ("clip_low", "clipped below, %"),
        ("grad_norm", "norm of the gradient"),
        ("previous", "cosine of two minibatches of a rollout"),
        ("live_groups", "groups of a minibatch that have a gradient"),
        ("measured", "rollouts measured"),
        ("first_accuracy", "right in the first rollout, %"),
        ("accuracy", "right in the last quarter, %"),
    ):
        values = [setting[key] * (100 if says.endswith("%") else 1) for setting in settings.values()]
        own.append(f"| {says} | " + " | ".join(f"{value:.{0 if key == 'measured' else 2}f}" for value in values) + " |")
    losses = ["| cosine (ratio of norms) | " + " | ".join(settings) + " |", own[1]]
    for name in next(iter(settings.values()))["losses"]:
        cells = [setting["losses"][name] for setting in settings.values()]
        losses.append(f"| {label(name)} | " + " | ".join(map(cosine_and_norm, cells)) + " |")
    return "\n\n".join([
        "## Where do the losses differ?",
        f"`python research/mechanism.py --out DIR`: {len(settings)} settings x {len(found['warm_starts'])} warm "
        f"starts, {found['rollouts']} rollouts each, of which one in {found['every']} is measured.",
        wrapped(READINGS["mechanism"].format(**mechanism_numbers(found))),
        "![cosines and norms of the losses' gradients](results/mechanism.png)",
        "GRPO's own runs:", "\n".join(own), "All losses:", "\n".join(losses),
    ])  # fmt: skip


def cosine_and_norm(loss: Mapping[str, float | None]) -> str:
    return f"{loss['cosine']:.3f} ± {loss['cosine_error']:.3f} ({loss['norm']:.2f})"


def validations(run: Path) -> dict[str, float]:
    """Return optimizer step -> validation accuracy, for each validation of a run."""
    rows = read_metrics(run / "metrics.csv")
    return {str(step): round(row["val/accuracy"], 6) for step, row in rows.items() if "val/accuracy" in row}


def take(name: str, folder: Path) -> None:
    """Copy a study's results and the page's figures, or those of mechanism.py, or the rates that a study chose."""
    RESULTS.mkdir(exist_ok=True)
    if name == "mechanism":
        shutil.copy(folder / "results.json", RESULTS / "mechanism.json")
        shutil.copy(folder / "mechanism.png", RESULTS / "mechanism.png")
        return
    results = json.loads((folder / "results.json").read_text())
    if name not in STUDIES:  # it only chose the rates of another one
        kept = {key: results[key] for key in ("name", "baseline", "metric", "budget", "seeds")}
        kept["best_rates"] = {task: rates_of_families(name, t["cells"]) for task, t in results["tasks"].items()}
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
        return
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
    DETAILS.write_text(page())
    SHORT_PAGE.write_text(short_page())


if __name__ == "__main__":
    main()
