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


def at_step(step: int) -> Measure:
    return Measure(f"pass@1 at step {step}", lambda run: run["validations"].get(str(step)))


def suite(metric: str, name: str) -> Measure:
    return Measure(name, lambda run: run["suites"].get("steps_suite", {}).get(metric))


PASS_1, PASS_16, PASS_64 = (at_end(f"pass@{k}", f"pass@{k}") for k in (1, 16, 64))
ENTROPY = quarter("rollout/entropy", 3, "entropy in the last quarter (nats)")
ENTROPY_RISE = Measure("entropy, last minus first quarter (nats)", lambda run: _rise(run, "rollout/entropy"))
EARLY = quarter("rollout/correct_count", 0, "correct of 256 in the first quarter")
LATE = quarter("rollout/correct_count", 3, "correct of 256 in the last quarter")
UNSOLVED_RISE = Measure("unsolved prompts of 32, last minus best quarter", lambda run: _worse(run))
UNSOLVED_CHANGE = Measure(
    "unsolved prompts of 32, last minus first quarter", lambda run: _rise(run, "rollout/unsolved_prompts")
)
ZERO = quarter("train/zero_advantage", 3, "share of zero advantages in the last quarter")
ZERO_BASE = quarter("train/zero_advantage_base", 3, "the same without the margin")
NO_SIGNAL = quarter("train/no_signal", 3, "share of groups with zero advantages only, last quarter")
LOSS = quarter("train/loss", 3, "loss in the last quarter")
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
        more, less: the two cells; or `before` for the model that training starts from, or a number.
        task: task of the study.
        other: measure of the other cell, if it is another.
        printed: the difference that the paper prints for the same measure, as a share.
        now: how to read the registered verdict in the light of the results, and why; the page shows both.
        by_construction: True = it could hardly come out otherwise, so it is listed, not counted as seen.
        afterwards: True = written when the results were in: no verdict, and not in Holm's correction.
    """

    says: str
    where: str
    measure: Measure
    more: str | float
    less: str | float
    task: str = "steps"
    other: Measure | None = None
    printed: float | None = None
    now: str = ""
    by_construction: bool = False
    afterwards: bool = False


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
        printed=0.007,
    ),
    Claim(
        "GRPO's pass@k at a large k falls below that of the base model",
        "4.2, fig. 2; table 5, MATH 95.0 against 96.3",
        PASS_64,
        "before",
        "grpo",
    ),
    Claim(
        "Easy-focused has the most correct answers early",
        "4.3, fig. 5",
        EARLY,
        "easy_focused",
        "hard_focused",
        now="cannot tell: it compares with hard-focused only; for GRPO see below",
    ),
    Claim(
        "Hard-focused has the most correct answers late",
        "4.3, fig. 5",
        LATE,
        "hard_focused",
        "easy_focused",
        now="cannot tell: it compares with easy-focused only; for GRPO see below",
    ),
    Claim(
        "Negative-dominant training is less stable: unsolved prompts rise again",
        "D.3, fig. 9; D.5: 3 of 10 runs collapse",
        UNSOLVED_RISE,
        "negative_dominant",
        "agrae",
        now="split in two below: this measure is never negative, so noise alone makes it positive",
    ),
    Claim(
        "A-GRAE is better than GRPO at k = 1",
        "5.3; table 5, MATH 78.3 against 76.5",
        PASS_1,
        "agrae",
        "grpo",
        printed=0.018,
    ),
    Claim(
        "A-GRAE is better than GRPO at a large k",
        "5.3; table 5, MATH pass@64 95.0 against 93.5",
        PASS_64,
        "agrae",
        "grpo",
        printed=0.015,
    ),
    Claim(
        "The sample level alone is better than GRPO at k = 1",
        "5.4; table 5, MATH 77.8 against 76.5",
        PASS_1,
        "sample_level",
        "grpo",
        printed=0.013,
    ),
    Claim(
        "The group level alone is better than GRPO at k = 1",
        "5.4; table 5, MATH 77.6 against 76.5",
        PASS_1,
        "group_level",
        "grpo",
        printed=0.011,
    ),
    Claim(
        "The group level alone is better than GRPO at a large k",
        "5.4; table 5, MATH pass@64 95.3 against 93.5",
        PASS_64,
        "group_level",
        "grpo",
        printed=0.018,
    ),
    *(
        Claim(says, where, measure, more, less, printed=printed, afterwards=True)
        for says, where, measure, more, less, printed in (
            (
                "Hard-focused is better than GRPO at k = 16",
                "table 6, MATH 92.2 against 90.3",
                PASS_16,
                "hard_focused",
                "grpo",
                0.019,
            ),
            (
                "Hard-focused is better than GRPO at k = 64",
                "table 6, MATH 94.8 against 93.5",
                PASS_64,
                "hard_focused",
                "grpo",
                0.013,
            ),
            (
                "Hard-focused is worse than GRPO at k = 1",
                "table 6, MATH 75.8 against 76.5",
                PASS_1,
                "grpo",
                "hard_focused",
                0.007,
            ),
            (
                "Easy-focused is better than GRPO at k = 1",
                "table 6, MATH 77.0 against 76.5",
                PASS_1,
                "easy_focused",
                "grpo",
                0.005,
            ),
            (
                "Easy-focused has more correct answers early than GRPO",
                "4.3, fig. 5",
                EARLY,
                "easy_focused",
                "grpo",
                None,
            ),
            ("Hard-focused has more correct answers late than GRPO", "4.3, fig. 5", LATE, "hard_focused", "grpo", None),
            (
                "Under negative-dominant training unsolved prompts rise",
                "D.3, fig. 9",
                UNSOLVED_CHANGE,
                "negative_dominant",
                0.0,
                None,
            ),
            (
                "... more than under A-GRAE",
                "D.5: ASS has no collapse",
                UNSOLVED_CHANGE,
                "negative_dominant",
                "agrae",
                None,
            ),
        )
    ),
)

AAPO = tuple(
    claim
    for g in (2, 6, 10)
    for claim in (
        Claim(
            f"G = {g}: the margin lowers the share of zero advantages",
            "6.4, fig. 2",
            ZERO,
            "grpo",
            "aapo",
            f"g{g}",
            by_construction=True,
        ),
        Claim(
            f"G = {g}: also against the same run's advantages without it",
            "6.4, fig. 2",
            ZERO_BASE,
            "aapo",
            "aapo",
            f"g{g}",
            ZERO,
            by_construction=True,
        ),
        Claim(
            f"G = {g}: AAPO's loss varies less than GRPO's",
            "D.4: 3.6e-4 against 3.53e-3",
            LOSS_VARIANCE,
            "grpo",
            "aapo",
            f"g{g}",
            now="cannot be tested here: with one update per rollout GRPO's loss is 0 whatever its gradient is",
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
            now="not the paper's comparison, which is at equal steps: see below",
        ),
        Claim(
            f"G = {g}: AAPO is better than GPG at equal samples",
            "6.2, table 1: 18.8 against 16.2 (Llama 3B), at equal steps",
            PASS_1,
            "aapo",
            "gpg",
            f"g{g}",
            now="not the paper's comparison, which is at equal steps: see below",
        ),
    )
) + tuple(
    claim
    for g, step in ((2, 300), (6, 100), (10, 60))  # AAPO's last step
    for claim in (
        *(
            Claim(
                f"G = {g}: AAPO is better than {name} at equal steps",
                f"6.2, table 1: 18.8 against {value} (Llama 3B)",
                at_step(step),
                "aapo",
                cell,
                f"g{g}",
                printed=printed,
                afterwards=True,
            )
            for name, cell, value, printed in (("GRPO", "grpo", "14.2", 0.046), ("GPG", "gpg", "16.2", 0.026))
        ),
        Claim(
            f"G = {g}: no group has zero advantages only",
            '6.4: "no instance"',
            NO_SIGNAL,
            0.0,
            "aapo",
            f"g{g}",
            afterwards=True,
        ),
        Claim(f"G = {g}: AAPO's loss is mostly positive", "D.4, fig. 5", LOSS, "aapo", 0.0, f"g{g}", afterwards=True),
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
            printed=printed,
        )
        for name, cell, value, printed in (
            ("GRPO", "grpo", "37.1", 0.046),
            ("DAPO", "dapo", "39.6", 0.021),
            ("GMPO", "gmpo", "39.0", 0.027),
        )
    ),
    Claim(
        "Adaptive clipping alone is better than GRPO",
        "5.2.3, table 6: 39.0 against 37.5 (Qwen2.5-Math-1.5B, average)",
        PASS_1,
        "fac",
        "grpo",
        printed=0.015,
    ),
    Claim(
        "The power mean alone is better than GRPO",
        "5.2.3, table 6: 40.9 against 37.5 (Qwen2.5-Math-1.5B, average)",
        PASS_1,
        "pmpo",
        "grpo",
        printed=0.034,
    ),
    Claim(
        "Both together are better than adaptive clipping alone",
        "5.2.3, table 6: 41.7 against 39.0 (Qwen2.5-Math-1.5B, average)",
        PASS_1,
        "apmpo",
        "fac",
        printed=0.027,
    ),
    Claim(
        "Both together are better than the power mean alone",
        "5.2.3, table 6: 41.7 against 40.9 (Qwen2.5-Math-1.5B, average)",
        PASS_1,
        "apmpo",
        "pmpo",
        printed=0.008,
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
            printed=printed,
        )
        for measure, found in (
            (
                SELF_BLEU,
                (
                    ("GRPO", "DAPO", "0.76, 0.71", 0.05),
                    ("DAPO", "GMPO", "0.71, 0.65", 0.06),
                    ("GMPO", "APMPO", "0.65, 0.54", 0.11),
                ),
            ),
            (
                COSINE,
                (
                    ("GRPO", "DAPO", "0.84, 0.79", 0.05),
                    ("DAPO", "GMPO", "0.79, 0.75", 0.04),
                    ("GMPO", "APMPO", "0.75, 0.66", 0.09),
                ),
            ),
        )
        for more, less, values, printed in found
    ),
)
