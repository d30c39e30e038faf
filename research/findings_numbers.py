"""The numbers in the prose of findings.md, from the studies' results: section -> field of `READINGS` -> text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from lit_rlvr.commands.compare.significance import LEVEL, detectable, holm, paired_t_test, sign_flip_test, t_interval

Found = Mapping[str, Any]
"""What a claim says -> its `Finding`."""

WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")


def mean_of(task: Mapping[str, Any], cell: str, value: Callable[[Any], float]) -> float:
    """Return a cell's mean over its runs of a task."""
    runs = task["cells"][cell]["by_seed"].values()
    return sum(value(run) for run in runs) / len(runs)


def quarter(task: Mapping[str, Any], cell: str, metric: str, k: int = 3) -> float:
    """Return a cell's mean of a metric in quarter k of training; the default is the last."""
    return mean_of(task, cell, lambda run: float(run["quarters"][metric][k]))


def signed(finding: Any) -> str:
    """Return how many seeds have the claimed sign."""
    return f"{sum(difference > 0 for difference in finding.differences)} of {finding.n}"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 1e-3 else f"p {p:.3f}"


def sign_flip_p(*losses: Sequence[float]) -> str:
    """Return the p of the sign-flip test of some losses' differences from a baseline, the largest of them."""
    return f"p {max(sign_flip_test(values) or 1.0 for values in losses):.4f}"


def is_collapsed(run: Mapping[str, Any]) -> bool:
    """Return whether a run ended below half of its best validation accuracy."""
    return bool(run["last"]["val/accuracy"] < run["best"] / 2)


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def span(values: Iterable[float], digits: int) -> str:
    found = [*values]
    low, high = (f"{value:.{digits}f}" for value in (min(found), max(found)))
    return low if low == high else f"{low} to {high}"


def opening_numbers(
    found: Found,
    studies: Mapping[str, Any],
    regime: Mapping[str, str],
    best: Mapping[str, str],
    more: Mapping[str, str],
) -> dict[str, str]:
    """Return the numbers of the page's first screen.

    Args:
        found: all claims of the three papers.
        studies: their results, by name.
        regime: the numbers of A-GRAE's study of mixed lengths.
        best: the numbers of the losses at their best learning rates.
        more: the numbers of the later losses.
    """
    agrae, entropy, entropy_last, hard, rising, sample, group = (
        found[says]
        for says in (
            "A-GRAE is better than GRPO at k = 1",
            "Negative-dominant training has a higher entropy than GRPO in the first quarter",
            "Negative-dominant training has a higher entropy than GRPO",
            "Hard-focused is better than GRPO at k = 16",
            "Under negative-dominant training unsolved prompts rise",
            "The sample level alone is better than GRPO at k = 1",
            "The group level alone is better than GRPO at k = 1",
        )
    )
    lead, kept = found["APMPO is better than GRPO"], found["APMPO keeps a higher entropy than GRPO"]
    cells = {"apmpo", "fac", "pmpo"}
    readings = [
        f.now
        for says, f in found.items()
        if f.claim.printed is not None and f.claim.more in cells and not says.startswith("Four epochs")
    ]
    runs = sum(
        len(cell["by_seed"])
        for study in studies.values()
        for t in study["tasks"].values()
        for cell in t["cells"].values()
    )
    return {
        "runs": str(runs),
        "entropy_1": f"{entropy.difference:.3f}",
        "entropy_seeds": f"{signed(entropy)} seeds",
        "entropy_last": f"{-entropy_last.difference:.3f}",
        "unsolved": f"{rising.difference:.1f}",
        "unsolved_seeds": f"{signed(rising)} seeds",
        "unsolved_grpo": f"{-unsolved_change(studies['agrae']['tasks']['steps'], 'grpo'):.1f}",
        "hard_16": f"{hard.difference:.3f}",
        "hard_seeds": f"{signed(hard)} seeds",
        "agrae_behind": f"{-agrae.difference:.3f}",
        "agrae": f"{agrae.more:.3f}",
        "grpo": f"{agrae.less:.3f}",
        "group_behind": f"{-group.difference:.3f}",
        "sample_level": f"{sample.difference:+.3f}",
        "sample_level_printed": f"{sample.claim.printed:+.3f}",
        "apmpo_entropy": f"{kept.difference:.3f}",
        "grpo_entropy": f"{kept.less:.3f}",
        "apmpo_smaller": WORDS[sum(reading.startswith("smaller") for reading in readings)],
        "apmpo_accuracy": WORDS[len(readings)],
        "apmpo_lead": f"{lead.difference:+.3f}",
        "apmpo_printed": f"{lead.claim.printed:+.3f}",
        **{f"margin_{key}": value for key, value in margin_numbers(found).items()},
        **{f"six_{key}": value for key, value in margin_numbers(found, "Groups of six: ").items()},
        **{f"gate_{key}": value for key, value in gate_numbers(studies["apmpo_gate"]["tasks"], found).items()},
        **{f"regime_{key}": value for key, value in regime.items()},
        **{f"best_{key}": value for key, value in best.items()},
        **{f"more_{key}": value for key, value in more.items()},
        **{f"apmpo_{key}": value for key, value in clipped_at_the_end(studies["apmpo"]["tasks"]["steps"]).items()},
    }


def clipped_at_the_end(task: Mapping[str, Any]) -> dict[str, str]:
    """Return the shares of GRPO's tokens that are clipped in the last rollout."""
    last = task["cells"]["grpo"]["last"]
    return {
        "clipped_above": percent(last["train/clip_high"]["mean"], 1),
        "clipped_below": percent(last["train/clip_low"]["mean"], 1),
    }


def unsolved_change(task: Mapping[str, Any], cell: str) -> float:
    """Return how many more prompts of a rollout are unsolved in the last quarter of training than in the first."""
    last, first = (quarter(task, cell, "rollout/unsolved_prompts", k) for k in (3, 0))
    return last - first


def leads(found: Found) -> dict[str, str]:
    """Return who is ahead of whom at equal steps in AAPO's study at G = 2."""
    over_gpg, over_grpo, without = (
        found[f"G = 2: {says}"]
        for says in (
            "AAPO is better than GPG at equal steps",
            "AAPO is better than GRPO at equal steps",
            "GRPO is better than GPG at equal steps, which no margin explains",
        )
    )
    return {
        "ahead_of_gpg": f"{over_gpg.difference:.3f}",
        "ahead_of_grpo": f"{over_grpo.difference:.3f}",
        "ahead_low": f"{over_grpo.interval[0]:.3f}",
        "ahead_high": f"{over_grpo.interval[1]:.3f}",
        "ahead_p": f"{over_grpo.p:.3f}",
        "grpo_ahead_of_gpg": f"{without.difference:.3f}",
        "grpo_ahead_p": f"{without.p:.3f}",
        "smallest_grpo": f"{over_grpo.below:.2f}",
        "smallest_gpg": f"{over_gpg.below:.2f}",
    }


def agrae_numbers(task: Mapping[str, Any], found: Found) -> dict[str, str]:
    def norms(cell: str, digits: int) -> str:
        return " to ".join(f"{quarter(task, cell, 'train/grad_norm', k):.{digits}f}" for k in (0, 3))

    first, second = (
        found[says].difference
        for says in (
            "Negative-dominant training has a higher entropy than GRPO in the first quarter",
            "... in the second quarter",
        )
    )
    hard = found["Hard-focused is better than GRPO at k = 16"]
    rising = found["Under negative-dominant training unsolved prompts rise"]
    negative, group = (
        -found[f"{name} is better than GRPO at k = 1"].difference
        for name in ("Negative-dominant", "The group level alone")
    )
    return {
        "negative_behind": f"{negative:.3f}",
        "group_behind": f"{group:.3f}",
        "grpo_right": percent(quarter(task, "grpo", "rollout/accuracy")),
        "grpo_norms": norms("grpo", 1),
        "positive_norms": norms("positive_dominant", 0),
        "negative_norms": norms("negative_dominant", 1),
        "entropy_1": f"{first:.3f}",
        "entropy_2": f"{second:.3f}",
        "crossing": percent(crossing(task)),
        "hard_16": f"{hard.difference:.3f}",
        "hard_seeds": signed(hard),
        "unsolved": f"{rising.difference:.1f}",
        "unsolved_seeds": signed(rising),
    }


def crossing(task: Mapping[str, Any]) -> float:
    """Return the share of training after which negative-dominant training's entropy is below GRPO's, by a straight line
    between the middles of two quarters."""
    ahead = [quarter(task, "negative_dominant", "rollout/entropy", k) - quarter(task, "grpo", "rollout/entropy", k)
             for k in range(4)]  # fmt: skip
    k = next(k for k in range(3) if ahead[k] > 0 >= ahead[k + 1])
    return (k + 0.5 + ahead[k] / (ahead[k] - ahead[k + 1])) / 4


def apmpo_numbers(task: Mapping[str, Any], readings: Iterable[str], found: Found) -> dict[str, str]:
    """Return APMPO's numbers.

    Args:
        readings: what is said now of each registered claim about accuracy.
        found: the claims.
    """
    cells = task["cells"]
    ends = [cell["mean"] for cell in cells.values()]
    said = [*readings]
    smaller = sum(reading.startswith("smaller") for reading in said)
    lengths = {f"{quarter(task, cell, 'rollout/length', k):.0f}" for cell in cells for k in range(4)}
    return {
        "spread": f"{max(ends) - min(ends):.3f}",
        "exponent": f"{quarter(task, 'apmpo', 'train/p'):.2f}",
        "upper_clip": f"{quarter(task, 'apmpo', 'train/eps_ada'):.2f}",
        "smaller": WORDS[smaller],
        "left": WORDS[len(said) - smaller],
        "accuracy_claims": WORDS[len(said)],
        "only_sigma": f"{0.2 + 0.2 * math.tanh(2):.3f}",  # sigma is at most 0.5; eq. 6 with 0.2 and 0.4
        "apmpo_entropy": f"{found['APMPO keeps a higher entropy than GRPO'].difference:.3f}",
        "length": " or ".join(sorted(lengths)),
        **clipped_at_the_end(task),
    }


def aapo_numbers(tasks: Mapping[str, Any], found: Found) -> dict[str, str]:
    small = tasks["g2"]
    losses = [
        loss
        for task in tasks.values()
        for run in task["cells"]["aapo"]["by_seed"].values()
        for loss in run["quarters"]["train/loss"]
    ]
    no_signal = [quarter(task, "aapo", "train/no_signal") for task in tasks.values()]

    def norms(cell: str) -> str:
        return span((quarter(task, cell, "train/grad_norm", k) for task in tasks.values() for k in range(4)), 2)

    def norm(task: Mapping[str, Any], cell: str) -> float:
        return sum(quarter(task, cell, "train/grad_norm", k) for k in range(4)) / 4

    def variance(task: Mapping[str, Any], cell: str) -> float:
        return mean_of(task, cell, lambda run: float(run["loss_variance"]))

    ratios = [variance(task, "aapo") / variance(task, "gpg") for task in tasks.values()]
    scales = [(norm(task, "aapo") / norm(task, "gpg")) ** 2 for task in tasks.values()]
    large = [found[f"G = {g}: AAPO is better than {name} at equal steps"] for g in (6, 10) for name in ("GRPO", "GPG")]
    return {
        **leads(found),
        **{f"{cell}_norms": norms(cell) for cell in ("grpo", "gpg", "aapo")},
        "near": f"{max(abs(finding.difference) for finding in large):.4f}",
        "near_p": f"{max(finding.below for finding in large):.2f}",
        "printed_grpo": f"{large[0].claim.printed:+.3f}",
        "printed_gpg": f"{large[1].claim.printed:+.3f}",
        "pass_64": f"{mean_of(small, 'aapo', pass_64):.3f}",
        "pass_64_grpo": f"{mean_of(small, 'grpo', pass_64):.3f}",
        "no_signal": listed(percent(share) for share in no_signal),
        "device": listed(percent(share**4, 1 if share**4 > 0.001 else 4) for share in no_signal),
        "positive_losses": f"{sum(loss > 0 for loss in losses)} of {len(losses)}",
        "variance_ratios": listed(f"{ratio:.1f}" for ratio in ratios),
        "rescaled": listed(f"{ratio / scale:.2f}" for ratio, scale in zip(ratios, scales, strict=True)),
    }


def pass_64(run: Any) -> float:
    return float(run["last"]["val/multi_step_arithmetic/pass@64"])


def margin_numbers(found: Found, start: str = "") -> dict[str, str]:
    """Return the differences of a study of AAPO's margin, by claim; the claims begin with `start`."""
    names = {
        "lead": "AAPO is better than GRPO at equal steps",
        "margin": "AAPO is better than AAPO without the margin",
        "own": "AAPO is better than with reference rewards of other prompts",
        "last": "At the last step alone: AAPO is better than GRPO",
        "constant": "A margin that is the same for all prompts is better than none",
        "sample": "AAPO with the sample's deviation is better than with the population's",
        "aggregation": "GRPO's mean over completions is better than one over a group's tokens",
    }
    there = {key: found[start + says] for key, says in names.items() if start + says in found}
    primary = [there[key] for key in ("lead", "margin", "own")]
    return {
        **differences(there),
        **({"last_p": p_value(there["last"].p)} if "last" in there else {}),
        "pairs": str(primary[0].n),
        "p": f"{max(f.adjusted for f in primary[:2]):.3f}",
        "verdicts": "; ".join(f.verdict for f in primary),
        "could_show": f"{max(f.could_show for f in primary):.3f}",
        "printed": f"{primary[0].claim.printed:+.3f}",
        "seeds": WORDS[primary[0].n // len(primary[0].by_task)],
        "below": p_value(primary[0].below),
        "aapo_end": f"{primary[0].more:.3f}",
        "grpo_end": f"{primary[0].less:.3f}",
    }


def differences(findings: Mapping[str, Any]) -> dict[str, str]:
    """Return the mean difference of each finding, and its interval under the same key with `_interval`."""
    numbers = {key: f"{finding.difference:+.3f}" for key, finding in findings.items()}
    return numbers | {f"{key}_interval": between(finding.interval) for key, finding in findings.items()}


def between(interval: Iterable[float]) -> str:
    return "from {:+.3f} to {:+.3f}".format(*interval)


def gate_numbers(tasks: Mapping[str, Any], found: Found) -> dict[str, str]:
    """Return the differences of APMPO's study of the clip, by claim; its lead over GRPO without the pairs in which GRPO
    collapsed (`intact`); and how many of GRPO's tokens are clipped."""
    names = {
        "lead": "Four epochs: APMPO is better than GRPO",
        "gmpo": "Four epochs: APMPO is better than GMPO",
        "static": "Four epochs: APMPO is better than an upper clip of 0.33",
        "gmpo_grpo": "Four epochs: GMPO is better than GRPO",
        "three_lead": "Three validations: APMPO is better than GRPO",
        "three_gmpo": "Three validations: APMPO is better than GMPO",
        "three_gmpo_grpo": "Three validations: GMPO is better than GRPO",
    }
    intact = [
        ours["last"]["val/accuracy"] - theirs["last"]["val/accuracy"]
        for task in tasks.values()
        for seed, theirs in task["cells"]["grpo"]["by_seed"].items()
        if (ours := task["cells"]["apmpo"]["by_seed"].get(seed)) and not is_collapsed(theirs)
    ]

    def clipped(metric: str) -> str:
        shares = [fmean(quarter(task, "grpo", metric, k) for task in tasks.values()) for k in range(4)]
        return f"{100 * min(shares):.1f} to {percent(max(shares), 1)}"

    return {
        **differences({key: found[says] for key, says in names.items()}),
        **{f"{key}_p": f"{found[says].p:.4f}" for key, says in names.items()},
        "gmpo_adjusted": f"{found[names['gmpo']].adjusted:.4f}",
        "pairs": str(found[names["gmpo"]].n),
        "intact": f"{fmean(intact):+.3f}",
        "intact_interval": between(t_interval(intact) or ()),
        "above": clipped("train/clip_high"),
        "below": clipped("train/clip_low"),
        "printed": f"{found[names['lead']].claim.printed:+.3f}",
        "could_show": f"{found[names['static']].could_show:.3f}",
    }


def regime_numbers(tasks: Mapping[str, Any], found: Found, families: Mapping[str, Any]) -> dict[str, str]:
    """Return the differences of A-GRAE's study of mixed lengths from GRPO, by cell and k.

    Args:
        families: a cell -> its accuracy at each learning rate, in the study that chose them.
    """
    names = {"agrae": "A-GRAE", "half": "A-GRAE with alpha 0.5", "sample": "the sample level alone",
             "group": "the group level alone"}  # fmt: skip
    there = {
        f"{key}_{k}": found[f"Mixed lengths: {name} is better than GRPO at k = {k}"]
        for key, name in names.items()
        for k in (1, 32)
    }
    primary = [there[key] for key in ("agrae_1", "agrae_32", "half_1")]
    return {
        **differences(there),
        **({"last_p": p_value(there["last"].p)} if "last" in there else {}),
        "pairs": str(primary[0].n),
        "printed_32": f"{primary[1].claim.printed:+.3f}",
        "below": p_value(max(primary[0].below, primary[2].below)),
        **{
            f"chosen_{name}": f"{max(cell['mean'] for cell in families[name]['cells'].values()):.3f}"
            for name in ("grpo", "agrae")
        },
        **{f"rate_{name}": f"{families[name]['best_lr']:g}" for name in ("grpo", "agrae")},
        "agrae_at_rate_grpo": f"{at_rate(families['agrae'], families['grpo']['best_lr']):.3f}",
        "grpo": f"{primary[0].less:.3f}",
        "grpo_32": f"{primary[1].less:.3f}",
        "starts": span((task["before"]["mean"] for task in tasks.values()), 2),
    }


def at_rate(family: Mapping[str, Any], rate: float) -> float:
    """Return a family's accuracy at a learning rate."""
    (found,) = [float(cell["mean"]) for cell in family["cells"].values() if cell["lr"] == rate]
    return found


def best_numbers(results: Mapping[str, Any], rates: Mapping[str, float]) -> dict[str, str]:
    """Return the numbers of the losses at their best learning rates.

    Args:
        rates: of each loss.
    """
    tasks, baseline = list(results["tasks"].values()), results["baseline"]
    ends, apart = ends_of(results, rates)
    others = {name: values for name, values in apart.items() if name != baseline}
    intervals = {name: t_interval(values) or [] for name, values in others.items()}
    corrected = dict(zip(others, holm([paired_t_test(values) or 0.0 for values in others.values()]), strict=True))
    below = [name for name, (_, high) in intervals.items() if high < 0]
    told = [name for name in below if corrected[name] < LEVEL]
    pairs = len(apart[baseline])
    shown = [detectable(pairs) * stdev(values) for name, values in others.items() if name not in below]
    highest = max(rates.values())
    return {
        "pairs": str(pairs),
        "above": WORDS[sum(low > 0 for low, _ in intervals.values())],
        "shown": span(shown, 2),
        "largest_lead": f"{max(map(fmean, others.values())):+.3f}",
        "below": listed(LOSS_NAMES.get(name, name) for name in below),
        "told": listed(LOSS_NAMES.get(name, name) for name in told),
        "told_p": p_value(max(corrected[name] for name in told)),
        "told_flip": sign_flip_p(*(others[name] for name in told)),
        "only_before": listed(LOSS_NAMES.get(name, name) for name in below if name not in told),
        "only_before_flip": sign_flip_p(*(others[name] for name in below if name not in told)),
        "compared": str(len(others)),
        "runs": str(pairs * len(ends)),
        "least_p": f"{2 / 2**pairs:.3f}",
        "losses": str(len(ends)),
        "highest": f"{highest:g}",
        "at_highest": WORDS[sum(rate == highest for rate in rates.values())],
        "ends_at_highest": span((ends[name] for name, rate in rates.items() if rate == highest), 3),
        "ends_below": span((ends[name] for name, rate in rates.items() if rate < highest), 3),
        "grpo": f"{ends[baseline]:.3f}",
        "dapo": f"{ends['dapo']:.3f}",
        "dapo_tokens": times_tokens(results, "dapo"),
        "starts": span((task["before"]["mean"] for task in tasks), 2),
    }


def ends_of(results: Mapping[str, Any], names: Iterable[str]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return each cell's mean at the end over all tasks and seeds, and its runs' differences from the baseline's."""
    tasks, ends, apart = results["tasks"].values(), {}, {}
    for name in names:
        cells = [task["cells"][name]["values"] for task in tasks]
        ends[name] = fmean(value for values in cells for value in values.values())
        base = [task["cells"][results["baseline"]]["values"] for task in tasks]
        apart[name] = [values[seed] - b[seed] for values, b in zip(cells, base, strict=True) for seed in values]
    return ends, apart


def times_tokens(results: Mapping[str, Any], name: str) -> str:
    """Return how many times the baseline's tokens a cell generates."""
    used, base = (
        fmean(task["cells"][cell]["used"]["tokens"]["mean"] for task in results["tasks"].values())
        for cell in (name, results["baseline"])
    )
    return f"{used / base:.1f}"


def more_numbers(results: Mapping[str, Any]) -> dict[str, str]:
    """Return each later loss's mean at the end, and its difference from GRPO with its interval."""
    ends, apart = ends_of(results, ("fipo", "topr", "dro"))
    return {
        **{name: f"{end:.3f}" for name, end in ends.items()},
        **{
            f"{name}_apart": f"{fmean(values):+.3f}, {between(t_interval(values) or ())}"
            for name, values in apart.items()
        },
        **{f"{name}_flip": sign_flip_p(values) for name, values in apart.items()},
        "pairs": str(len(apart["fipo"])),
        "fipo_tokens": times_tokens(results, "fipo"),
    }


def w_reinforce_numbers(tasks: Mapping[str, Any]) -> dict[str, str]:
    """Return how many runs ended below half of their start, and the means of others."""
    from scipy.stats import binomtest

    starts = {name: float(task["before"]["mean"]) for name, task in tasks.items()}
    runs = {(name, cell): list(found["values"].values()) for name, task in tasks.items()
            for cell, found in task["cells"].items()}  # fmt: skip
    fallen = {key: sum(value < starts[key[0]] / 2 for value in values) for key, values in runs.items()}
    together = "low", "tenth_2"

    def end(task: str, *cells: str) -> str:
        return (
            span((fmean(runs[task, cell]) for cell in cells), 2)
            if len(cells) > 1
            else f"{fmean(runs[task, cells[0]]):.2f}"
        )

    return {
        "collapsed": WORDS[fallen[together]],
        "together": WORDS[len(runs[together])],
        "elsewhere": WORDS[sum(fallen.values()) - fallen[together]],
        "missed": percent(binomtest(0, len(runs[together])).proportion_ci().high),
        "others": str(sum(map(len, runs.values())) - len(runs[together])),
        "one_update": end("low", "tenth_1"),
        "clipped": end("low", "tenth_2_clip"),
        "grpo": end("low", "grpo_2"),
        "equal": end("low", "equal_1", "equal_2", "equal_2_clip"),
        "centred": end("low", "centred_1", "centred_2", "centred_2_clip"),
        "high": end("high", "tenth_2"),
        "grpo_high": end("high", "grpo_2"),
        "right": percent(starts["low"]),
        "mean_advantage": f"{0.1 * starts['low'] - (1 - starts['low']):.2f}",
    }


def listed(names: Iterable[str]) -> str:
    """Return "A, B and C"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


LOSS_NAMES = {"aapo": "AAPO", "gpg": "GPG", "reinforce": "W-REINFORCE"}


def image_numbers(task: Mapping[str, Any]) -> dict[str, str]:
    def at_8(found: Mapping[str, Any]) -> float:
        return float(next(iter(found.values()))["8"]["mean"])

    own = task["cells"]["grpo"]["values"].values()
    above = sum(at_8(cell["pass_at_k"]) > at_8(task["before_pass_at_k"]) for cell in task["cells"].values())
    return {"grpo_runs": f"{min(own):.2f} and {max(own):.2f}", "above": WORDS[above]}


LEARNS = 1.2
"""GRPO learns where so many times as many samples are right in the last quarter as in the first rollout."""


def mechanism_numbers(found: Mapping[str, Any]) -> dict[str, str]:
    settings = found["settings"].values()
    learns = [s for s in settings if s["accuracy"] > LEARNS * s["first_accuracy"]]
    others = [s["accuracy"] for s in settings if s not in learns]

    def least(loss: str, among: Iterable[Any]) -> float:
        return min(float(setting["losses"][loss]["cosine"]) for setting in among)

    def among(loss: str, digits: int = 3, key: str = "cosine") -> str:
        return span((setting["losses"][loss][key] for setting in learns), digits)

    def apart(setting: Any) -> float:
        cosines = [float(setting["losses"][loss]["cosine"]) for loss in near]
        return max(cosines) - min(cosines)

    near = ("fac", "apmpo", "dapo")
    focused = [setting["losses"][name]["cosine"] for setting in learns for name in ("hard_focused", "easy_focused")]
    in_a_row = max(setting["previous"] for setting in learns)
    fac = fmean(setting["losses"]["fac"]["cosine"] for setting in learns)
    clipped = [setting["clip_low"] + setting["clip_high"] for setting in settings]
    return {
        "rollouts": str(found["rollouts"]),
        "every": str(found["every"]),
        "right_first": percent(learns[0]["first_accuracy"]),
        "learning_settings": "; ".join(
            f"{s['lr']:g} with {s['updates']} minibatches of {s['prompts']} prompts ({percent(s['accuracy'])})"
            for s in learns
        ),
        "learning": WORDS[len(learns)],
        "settings": str(len(settings)),
        "right_elsewhere": percent(max(others)),
        "pmpo_where_it_learns": f"{least('pmpo', learns):.4f}",
        "pmpo_at_all": f"{least('pmpo', settings):.4f}",
        "apmpo_at_all": f"{least('apmpo', settings):.3f}",
        "most_clipped": percent(max(clipped), 1),
        "group_level": among("group_level", 2),
        "positive": among("positive_dominant", 2),
        "negative": among("negative_dominant", 2),
        "agrae": among("agrae", 2),
        "focused": span(focused, 3),
        "sample_level_norm": among("sample_level", 2, "norm"),
        "measured": str(learns[0]["measured"]),
        "errors": f"{max(s['losses'][name]['cosine_error'] for s in learns for name in (*near, 'gmpo', 'cispo')):.3f}",
        "close": f"{max(apart(setting) for setting in learns):.3f}",
        **{name: among(name) for name in ("apmpo", "cispo", "dapo", "gmpo", "sample_level")},
        **{name: among(name, 2) for name in ("gpg", "aapo")},
        "in_a_row": f"{in_a_row:.2f}",
        "nothing_in_common": WORDS[sum(setting["previous"] <= 0 for setting in settings)],
        "signal": f"{math.sqrt(max(in_a_row, 0)):.2f}",
        "fac_cosine": f"{fac:.3f}",
        "fac_rest": f"{math.sqrt(1 - fac**2):.2f}",
    }
