"""The papers' claims that `findings.py` tests: differences of two cells of the studies in configs/studies/claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
        moot: why this study cannot test it, found afterwards; the numbers stay, and count in Holm's correction.
    """

    says: str
    where: str
    measure: Measure
    more: str
    less: str | float
    task: str = "steps"
    other: Measure | None = None
    moot: str = ""


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
            moot="with one update per rollout GRPO's loss is 0 whatever its gradient is",
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
    Claim(
        "Adaptive clipping alone is better than GRPO",
        "5.2.3, table 6: 39.0 against 37.5 (Qwen2.5-Math-1.5B, average)",
        PASS_1,
        "fac",
        "grpo",
    ),
    Claim(
        "The power mean alone is better than GRPO",
        "5.2.3, table 6: 40.9 against 37.5 (Qwen2.5-Math-1.5B, average)",
        PASS_1,
        "pmpo",
        "grpo",
    ),
    Claim(
        "Both together are better than adaptive clipping alone",
        "5.2.3, table 6: 41.7 against 39.0 (Qwen2.5-Math-1.5B, average)",
        PASS_1,
        "apmpo",
        "fac",
    ),
    Claim(
        "Both together are better than the power mean alone",
        "5.2.3, table 6: 41.7 against 40.9 (Qwen2.5-Math-1.5B, average)",
        PASS_1,
        "apmpo",
        "pmpo",
    ),
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
