"""The claims of the papers, tested on a tiny model: writes docs/findings.md from the results of the studies in
configs/studies/claims.

Take the results of a study into the page with `--take agrae=DIR` (its results.json and the figures that the page
shows), then run without options to write the page. docs/findings/*.json are these results as they were, and a test
compares the page with them.

Every claim is a difference of two cells over the same seeds, tested by the sign-flip permutation test; Holm's
correction covers all differences of one paper. A claim is *seen* if its difference has the claimed sign and p < 0.05,
*not seen* if it has the other sign and p < 0.05, and else *cannot tell*. The claims and their measures were written
down before the results were in, and no setting of an algorithm was tuned.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from lit_rlvr.compare.significance import LEVEL, detectable, holm, sign_flip_test, stratified_interval

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "findings"
SET = "val/multi_step_arithmetic"

Run = Mapping[str, Any]
"""One seed of a cell in results.json: `by_seed`."""


@dataclass(frozen=True)
class Measure:
    """A number of one run.

    Args:
        name: what it is.
        of: computes it; None if the run does not have it.
    """

    name: str
    of: Callable[[Run], float | None]


def at_end(metric: str, name: str) -> Measure:
    return Measure(name, lambda run: run["last"].get(f"{SET}/{metric}"))


def quarter(metric: str, k: int, name: str) -> Measure:
    return Measure(name, lambda run: run["quarters"][metric][k] if metric in run["quarters"] else None)


def suite(metric: str, name: str) -> Measure:
    return Measure(name, lambda run: run["suites"].get("steps_suite", {}).get(metric))


PASS_1, PASS_64 = at_end("pass@1", "pass@1"), at_end("pass@64", "pass@64")
ENTROPY = quarter("rollout/entropy", 3, "entropy in the last quarter (nats)")
ENTROPY_RISE = Measure("entropy, last minus first quarter (nats)", lambda run: _rise(run, "rollout/entropy"))
EARLY = quarter("rollout/correct_count", 0, "correct of 256 in the first quarter")
LATE = quarter("rollout/correct_count", 3, "correct of 256 in the last quarter")
UNSOLVED_RISE = Measure("unsolved prompts of 32, last minus best quarter", lambda run: _worse(run))
ZERO = quarter("train/zero_advantage", 3, "share of zero advantages in the last quarter")
ZERO_BASE = quarter("train/zero_advantage_base", 3, "the same without the margin")
NO_SIGNAL = quarter("train/no_signal", 3, "share of groups with zero advantages only, last quarter")
LOSS_VARIANCE = Measure("variance of the loss", lambda run: run["loss_variance"])
SELF_BLEU = suite("diversity/self_bleu_4", "self-BLEU-4")
COSINE = suite("diversity/cosine_similarity", "cosine similarity")


def _rise(run: Run, metric: str) -> float:
    first, *_, last = run["quarters"][metric]
    return float(last - first)


def _worse(run: Run) -> float:
    course = run["quarters"]["rollout/unsolved_prompts"]
    return float(course[-1] - min(course))


@dataclass(frozen=True)
class Claim:
    """A claimed difference: `measure` of `more` exceeds that of `less` in the same seed.

    Args:
        says: the claim, in few words.
        where: where the paper makes it, and its numbers if there are any.
        less: the other cell, or `before` for the model that training starts from, or a number.
        task: task of the study.
        other: measure of the other cell, if it is another.
    """

    says: str
    where: str
    measure: Measure
    more: str
    less: str | float
    task: str = "steps"
    other: Measure | None = None


AGRAE = (
    Claim(
        "Negative-dominant training has a higher entropy than GRPO", "4.2, fig. 3", ENTROPY, "negative_dominant", "grpo"
    ),
    Claim(
        "... which rises during training", '4.2, fig. 3: "monotonic increase"', ENTROPY_RISE, "negative_dominant", 0.0
    ),
    Claim(
        "Positive-dominant training has a lower entropy than GRPO", "4.2, fig. 3", ENTROPY, "grpo", "positive_dominant"
    ),
    Claim(
        "Positive-dominant is worse than GRPO at a large k",
        "4.2, fig. 2; table 6, MATH pass@256 93.2 against 95.0",
        PASS_64,
        "grpo",
        "positive_dominant",
    ),
    Claim(
        "Negative-dominant is better than GRPO at a large k",
        "4.2, fig. 2; table 6, MATH pass@256 97.0 against 95.0",
        PASS_64,
        "negative_dominant",
        "grpo",
    ),
    Claim(
        "Negative-dominant is better than GRPO at k = 1",
        "table 6, MATH 77.2 against 76.5",
        PASS_1,
        "negative_dominant",
        "grpo",
    ),
    Claim(
        "GRPO's pass@k at a large k falls below that of the base model",
        "4.2, fig. 2; table 5, MATH 95.0 against 96.3",
        PASS_64,
        "before",
        "grpo",
    ),
    Claim("Easy-focused has the most correct answers early", "4.3, fig. 5", EARLY, "easy_focused", "hard_focused"),
    Claim("Hard-focused has the most correct answers late", "4.3, fig. 5", LATE, "hard_focused", "easy_focused"),
    Claim(
        "Negative-dominant training is less stable: unsolved prompts rise again",
        "D.3, fig. 9; D.5: 3 of 10 runs collapse",
        UNSOLVED_RISE,
        "negative_dominant",
        "agrae",
    ),
    Claim("A-GRAE is better than GRPO at k = 1", "5.3; table 5, MATH 78.3 against 76.5", PASS_1, "agrae", "grpo"),
    Claim(
        "A-GRAE is better than GRPO at a large k",
        "5.3; table 5, MATH pass@64 95.0 against 93.5",
        PASS_64,
        "agrae",
        "grpo",
    ),
    Claim(
        "The sample level alone is better than GRPO at k = 1",
        "5.4; table 5, MATH 77.8 against 76.5",
        PASS_1,
        "sample_level",
        "grpo",
    ),
    Claim(
        "The group level alone is better than GRPO at k = 1",
        "5.4; table 5, MATH 77.6 against 76.5",
        PASS_1,
        "group_level",
        "grpo",
    ),
    Claim(
        "The group level alone is better than GRPO at a large k",
        "5.4; table 5, MATH pass@64 95.3 against 93.5",
        PASS_64,
        "group_level",
        "grpo",
    ),
)

AAPO = tuple(
    claim
    for g in (2, 6, 10)
    for claim in (
        Claim(f"G = {g}: the margin lowers the share of zero advantages", "6.4, fig. 2", ZERO, "grpo", "aapo", f"g{g}"),
        Claim(
            f"G = {g}: also against the same run's advantages without it",
            "6.4, fig. 2",
            ZERO_BASE,
            "aapo",
            "aapo",
            f"g{g}",
            ZERO,
        ),
        Claim(
            f"G = {g}: AAPO's loss varies less than GRPO's",
            "D.4: 3.6e-4 against 3.53e-3",
            LOSS_VARIANCE,
            "grpo",
            "aapo",
            f"g{g}",
        ),
        Claim(
            f"G = {g}: AAPO's loss varies less than GPG's",
            "D.4: 3.6e-4 against 3.9e-4",
            LOSS_VARIANCE,
            "gpg",
            "aapo",
            f"g{g}",
        ),
        Claim(
            f"G = {g}: AAPO is better than GRPO at equal samples, its reference's included",
            "6.2, table 1: 18.8 against 14.2 (Llama 3B), at equal steps",
            PASS_1,
            "aapo",
            "grpo",
            f"g{g}",
        ),
        Claim(
            f"G = {g}: AAPO is better than GPG at equal samples",
            "6.2, table 1: 18.8 against 16.2 (Llama 3B), at equal steps",
            PASS_1,
            "aapo",
            "gpg",
            f"g{g}",
        ),
    )
)

APMPO = (
    *(
        Claim(
            f"APMPO is better than {name}",
            f"5.2.1, table 1: 41.7 against {value} (Qwen2.5-Math-1.5B, average)",
            PASS_1,
            "apmpo",
            cell,
        )
        for name, cell, value in (("GRPO", "grpo", "37.1"), ("DAPO", "dapo", "39.6"), ("GMPO", "gmpo", "39.0"))
    ),
    Claim("Adaptive clipping alone is better than GRPO", "5.2.3, fig. 4 (a), table 6", PASS_1, "fac", "grpo"),
    Claim("The power mean alone is better than GRPO", "5.2.3, fig. 4 (a), table 6", PASS_1, "pmpo", "grpo"),
    Claim(
        "Both together are better than adaptive clipping alone", "5.2.3, fig. 4 (a), table 6", PASS_1, "apmpo", "fac"
    ),
    Claim("Both together are better than the power mean alone", "5.2.3, fig. 4 (a), table 6", PASS_1, "apmpo", "pmpo"),
    *(
        Claim(f"APMPO keeps a higher entropy than {name}", "5.2.2, fig. 1 (b)", ENTROPY, "apmpo", cell)
        for name, cell in (("GRPO", "grpo"), ("DAPO", "dapo"), ("GMPO", "gmpo"))
    ),
    *(
        Claim(
            f"{more}'s answers have a higher {measure.name} than {less}'s",
            f"K.6, table 4: {values}",
            measure,
            more.lower(),
            less.lower(),
        )
        for measure, found in (
            (
                SELF_BLEU,
                (("GRPO", "DAPO", "0.76, 0.71"), ("DAPO", "GMPO", "0.71, 0.65"), ("GMPO", "APMPO", "0.65, 0.54")),
            ),
            (COSINE, (("GRPO", "DAPO", "0.84, 0.79"), ("DAPO", "GMPO", "0.79, 0.75"), ("GMPO", "APMPO", "0.75, 0.66"))),
        )
        for more, less, values in found
    ),
)

STUDIES: dict[str, tuple[str, Sequence[Claim], tuple[str, ...]]] = {
    "agrae": ("A-GRAE", AGRAE, ("pass_at_k", "entropy", "accuracy", "correct_count")),
    "apmpo": ("APMPO", APMPO, ("accuracy", "entropy", "power", "clip")),
    "aapo": ("AAPO", AAPO, ("zero_advantage", "accuracy")),
}
"""Study -> its paper, its claims, and the figures on the page (of each task)."""


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
    paper, claims, figures = STUDIES[name]
    found = find(claims, results)
    unit, count = next(iter(results["budget"].items()))
    runs = [
        r for task in results["tasks"].values() for cell in task["cells"].values() for r in cell["by_seed"].values()
    ]
    minutes = sum(run["train_seconds"] for run in runs) / 60
    lines = [
        f"## {paper}",
        f"`lit-rlvr compare studies/claims/{name} --out DIR --jobs 2`: {len(runs)} runs of {count} {unit}, "
        f"{minutes:.0f} minutes of training on one core each.",
        "| claim | in the paper | measured | here | difference [95 %] | n | p, Holm | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [
        f"| {f.claim.says} | {f.claim.where} | {f.claim.measure.name} | {label(f.claim.more)} {number(f.more)}, "
        f"{label(f.claim.less)} {number(f.less)} | {number(f.difference)} [{', '.join(map(number, f.interval))}]"
        f"{f', could show {number(f.smallest)}' if f.verdict == 'cannot tell' else ''} | {f.n} | "
        f"{f.p:.3f}, {f.adjusted:.3f} | **{f.verdict}** |"
        for f in found
    ]
    lines[2:] = ["\n".join([*lines[2:], *rows])]
    lines += [READINGS[name].strip()] if name in READINGS else []
    lines += [
        f"![{name}: {task} {figure}](findings/{name}_{task}_{figure}.png)"
        for task, figure in pictures(name, results, figures)
    ]
    return "\n\n".join(lines)


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
    return "\n\n".join([INTRODUCTION.strip(), *(section(name, results) for name, results in found.items())]) + "\n"


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
        for figure in STUDIES[name][2]:
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
