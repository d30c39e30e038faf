"""The claims of the papers, tested on a tiny model: writes docs/findings.md from the results of the studies in
configs/studies/claims.

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

from lit_rlvr.compare.significance import (
    LEVEL,
    detectable,
    holm,
    interquartile_mean,
    probability_of_improvement,
    sign_flip_test,
    stratified_interval,
)

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "findings"


@dataclass(frozen=True)
class Part:
    """A study's part of the page.

    Args:
        title: its heading.
        figures: those that it shows of each task.
        claims: what it tests; none = it compares every cell with the baseline.
    """

    title: str
    figures: tuple[str, ...]
    claims: Sequence[Claim] = ()


STUDIES = {
    "agrae": Part("A-GRAE", ("pass_at_k", "entropy", "accuracy", "correct_count"), AGRAE),
    "apmpo": Part("APMPO", ("accuracy", "entropy", "power", "clip"), APMPO),
    "aapo": Part("AAPO", ("zero_advantage", "accuracy"), AAPO),
    "losses_text": Part("Eleven losses at an equal budget: sums of two numbers", ("final", "accuracy", "entropy")),
    "losses_image": Part("Eleven losses at an equal budget: counting in images", ("final", "accuracy", "entropy")),
}


READINGS = {
    "agrae": """
What stands out: suppressing positive advantages hurts on this task. Negative-dominant training, and with it A-GRAE's
group level and A-GRAE as a whole, end below GRPO at every k; the more the positive part is suppressed, the lower. Its
entropy is higher than GRPO's in the first third of training, as the paper has it, and falls like all others afterwards
(figure below). Rewarding correct answers ten times as much costs nothing, not even at a large k. The sample level alone
is GRPO within the differences that ten seeds show.

No run of any cell collapsed: none ended below half of its best accuracy.

What limits this: before training pass@64 is 0.98, so a gain at a large k could hardly show, only a loss. The paper's
runs end with most prompts solved; here 43 % of GRPO's samples are right in the last quarter, and the proficiency that
scales A-GRAE's positive advantages is 0.3 in the first and 0.4 in the last. A-GRAE's alpha is that of MATH, 1; a
smaller one suppresses less, and was not tried.
""",
    "apmpo": """
What stands out: the six losses end within 0.019 of each other at k = 1, and ten seeds cannot tell them apart. The
adaptive parts do what they are made for: the exponent falls from 0.80 to 0.73 and the upper clip rises from 0.31 to
0.33 as more samples are right. APMPO ends with 0.008 nats more entropy than GRPO, which is seen; its answers are as
diverse as GRPO's (self-BLEU-4 and cosine similarity differ by 0.003 at most, in the paper by 0.2).

No run of any cell collapsed.

What limits this: a clip matters only where ratios leave it, and with four updates per rollout at this learning rate
0.1 % of GRPO's tokens are clipped above and 0.5 % below. So all six losses nearly have the same gradient. More updates
or a higher rate would part them; that was not tried, because nothing here is tuned to agree. Answers of 8 tokens of
arithmetic leave little room for diversity.
""",
    "aapo": """
What stands out: the margin does what it is for. At G = 2 it takes a third of the zero advantages away, at G = 6 a
fifth, at G = 10, where few groups are all alike, little. But its reference answers cost as many samples as the training
ones, so at equal samples AAPO takes half the steps and ends below GRPO and GPG.

The paper compares at equal steps. After as many steps as AAPO took in all, GRPO stands at 0.298, 0.315 and 0.305 for
G = 2, 6 and 10 where AAPO ends at 0.309, 0.317 and 0.306, which no claim above tests: the margin is worth little here,
and not twice the samples. AAPO keeps a larger pass@64 at G = 2 (0.965 against 0.943).

No run of any cell collapsed.

What limits this: the variance of the loss cannot be compared with GRPO's here. With one update per rollout GRPO's loss
is minus the mean advantage, 0 but for rounding, whatever its gradient does; the paper's GRPO takes several updates. The
reference is the model that training starts from, so its answers get easier to beat as training goes on; the paper's
runs are longer.
""",
}
"""Study -> what a reader should take from its table, written when the results were in."""


@dataclass(frozen=True)
class Finding:
    """What was seen of a claim.

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
    """The claim's two numbers, of each seed that has both."""
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
    """A paper's part of the page."""
    part = STUDIES[name]
    unit, count = next(iter(results["budget"].items()))
    runs = [
        r for task in results["tasks"].values() for cell in task["cells"].values() for r in cell["by_seed"].values()
    ]
    minutes = sum(run["train_seconds"] for run in runs) / 60
    lines = [
        f"## {part.title}",
        f"`lit-rlvr compare studies/claims/{name} --out DIR --jobs 2`: {len(runs)} runs of {count} {unit}, "
        f"{minutes:.0f} minutes of training on one core each.",
        *([claims_table(part.claims, results)] if part.claims else comparisons(results)),
    ]
    lines += [READINGS[name].strip()] if name in READINGS else []
    lines += [
        f"![{name}: {task} {figure}](findings/{name}_{task}_{figure}.png)"
        for task, figure in pictures(name, results, part.figures)
    ]
    return "\n\n".join(lines)


def claims_table(claims: Sequence[Claim], results: Mapping[str, Any]) -> str:
    """Each claim with its numbers and its verdict."""
    return "\n".join([
        "| claim | in the paper | measured | here | difference [95 %] | n | p, Holm | verdict |",
        "|---|---|---|---|---|---|---|---|",
        *(
        f"| {f.claim.says} | {f.claim.where} | {f.claim.measure.name} | {label(f.claim.more)} {number(f.more)}, "
        f"{label(f.claim.less)} {number(f.less)} | {number(f.difference)} [{', '.join(map(number, f.interval))}]"
        f"{f', could show {number(f.smallest)}' if f.verdict == 'cannot tell' else ''} | {f.n} | "
        f"{f.p:.3f}, {f.adjusted:.3f} | **{f.verdict}** |"
        for f in find(claims, results)
        ),
    ])  # fmt: skip


def comparisons(results: Mapping[str, Any]) -> list[str]:
    """For each task: every cell's metric at the end, and its difference from the baseline in the same seed."""
    metric, baseline = results["metric"], results["baseline"]
    tables = []
    for task in results["tasks"].values():
        rows = [
            f"| cell | {metric} [95 %] | minus {label(baseline)}'s in the same seed [95 %] | entropy, last quarter | "
            "optimizer steps | n |",
            "|---|---|---|---|---|---|",
        ]
        base = task["cells"][baseline]["values"]
        for name, cell in sorted(task["cells"].items(), key=lambda item: -item[1]["mean"]):
            values = cell["values"]
            both = [values[seed] - base[seed] for seed in values if seed in base]
            entropy = mean(run["quarters"]["rollout/entropy"][3] for run in cell["by_seed"].values())
            rows.append(
                f"| {label(name)} | {with_interval(list(values.values()))} | "
                f"{'' if name == baseline else with_interval(both)} | {number(entropy)} | "
                f"{cell['used']['steps']['mean']:.0f} | {len(values)} |"
            )
        tables.append("\n".join(rows))
    return tables


def with_interval(values: Sequence[float]) -> str:
    """A mean over seeds and its 95 % bootstrap interval."""
    interval = stratified_interval(lambda tasks: np.mean(tasks[0], -1), [values])
    return f"{number(mean(values))} [{', '.join(map(number, interval or []))}]"


def over_tasks(studies: Sequence[Mapping[str, Any]]) -> str:
    """All tasks of several studies with the same cells together, as Agarwal et al. 2021 compare."""
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
    """docs/findings.md."""
    found = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in STUDIES
        if (RESULTS / f"{name}.json").is_file()
    }
    parts = [INTRODUCTION.strip(), *(section(name, results) for name, results in found.items())]
    if len(losses := [results for name, results in found.items() if not STUDIES[name].claims]) > 1:
        parts += ["## Eleven losses: both tasks together", over_tasks(losses), READINGS["losses"].strip()]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """
# Findings: the papers' claims on a tiny model

Do these algorithms do what their papers say, at an equal budget and with enough seeds to tell? The models and
machines of the papers are out of reach here. What two processor cores can do is train a Llama of a third of a million
parameters, many times, on a task that it half masters: sums and differences of three numbers, worked out one step a
line ([`MultiStepArithmetic`](../datamodules/multi_step_arithmetic.py)). A supervised warm start brings it to 22 % of
sampled answers right, pass@64 to 98 %; GRPO brings pass@1 to about 37 %. Rewards are 0 or 1, validation is on 128
held-out problems with 64 samples each, at temperature 1.

So this page says what holds *at this scale*. A claim that is seen here may fail on a large model, and the other way
round; a claim about learning dynamics that follows from the mathematics should show here as well.

**How to read it.** Each claim is a difference of two cells over the same seeds (the same prompts in the same order,
the same first completions). p is that of the two-sided sign-flip permutation test; the second value is after Holm's
correction over all claims of the paper. *Seen*: the claimed sign, and corrected p < 0.05. *Not seen*: the other sign,
and corrected p < 0.05. *Cannot tell*: anything else; the table then has the difference that as many pairs show with a
probability of 0.8, before the correction. Intervals are 95 % percentile bootstrap intervals over seeds. Ten pairs
show, with a probability of 0.8, a difference of one standard deviation of the differences; among fifteen claims one
of 1.5.

The claims, their measures and these rules were written before the results were in, and nothing was tuned to agree:
the algorithms have the papers' settings, the learning rate is one at which plain GRPO learns without collapsing.
`python benchmarks/findings.py` makes this page from [the studies' results](findings), `--take NAME=DIR` takes new
ones.
"""


def take(name: str, folder: Path) -> None:
    """Copy a study's results and the page's figures."""
    RESULTS.mkdir(exist_ok=True)
    results = json.loads((folder / "results.json").read_text())
    (RESULTS / f"{name}.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")
    for task in results["tasks"]:
        for figure in STUDIES[name].figures:
            path = folder / "figures" / task / f"{figure}.png"
            if path.is_file():
                shutil.copy(path, RESULTS / f"{name}_{task}_{figure}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--take", nargs="*", default=[], metavar="NAME=DIR", help="results of studies to show from now on"
    )
    for item in parser.parse_args().take:
        name, _, folder = item.partition("=")
        take(name, Path(folder))
    (DOCS / "findings.md").write_text(page())


if __name__ == "__main__":
    main()
