"""The papers' claims that `findings.py` tests: differences of two cells of the studies in configs/studies/claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_rlvr.commands.compare.claims import AVERAGE, complete_mean
from lit_rlvr.commands.compare.printed import load_printed

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
ENTROPY_1, ENTROPY_2, ENTROPY = (
    quarter("rollout/entropy", k, f"entropy in the {name} quarter (nats)")
    for k, name in ((0, "first"), (1, "second"), (3, "last"))
)
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
LAST_THREE = Measure(
    "pass@1, mean of the validations at steps 240, 270 and 300",
    lambda run: complete_mean([run["validations"].get(str(step)) for step in (240, 270, 300)]),
)
SELF_BLEU = suite("diversity/self_bleu_4", "self-BLEU-4")
COSINE = suite("diversity/cosine_similarity", "cosine similarity")


def _course(run: Run, metric: str) -> list[float] | None:
    """Return the quarters of a metric; None if one of them is missing."""
    found = run["quarters"].get(metric)
    return None if found is None or None in found else found


def _rise(run: Run, metric: str) -> float | None:
    course = _course(run, metric)
    return None if course is None else float(course[-1] - course[0])


def _worse(run: Run) -> float | None:
    course = _course(run, "rollout/unsolved_prompts")
    return None if course is None else float(course[-1] - min(course))


@dataclass(frozen=True)
class Claim:
    """A claimed difference: `measure` of `more` exceeds that of `less` in the same seed.

    Args:
        says: the claim, in few words.
        where: where the paper makes it, and its numbers if there are any.
        more, less: the two cells; or `before` for the model that training starts from, or a number.
        task: task of the study; None = all of them, where the difference must have one sign in each to be seen.
        other: measure of the other cell, if it is another.
        printed: the smallest difference with this sign that the paper prints for the same measure, as a share.
        now: how to read the registered verdict in the light of the results, and why; the page shows both.
        by_construction: True = it could hardly come out otherwise, so it is listed, not counted as seen.
        afterwards: True = written when the results were in: no verdict, and not in Holm's correction.
    """

    says: str
    where: str
    measure: Measure
    more: str | float
    less: str | float
    task: str | None = "steps"
    other: Measure | None = None
    printed: float | None = None
    now: str = ""
    by_construction: bool = False
    afterwards: bool = False


def printed(tables: Sequence[str], more: str, less: str, column: str = AVERAGE) -> list[float]:
    """Return the differences that a paper prints, in percentage points, smallest first.

    Args:
        tables: files in configs/printed; each has one table for a model or for a model and a test set.
        more, less: rows; tables without either are left out.
        column: the column of both values.
    """
    found = []
    for table in (table for name in tables for table in load_printed(name).tables):
        if table.metric != "pass@16" and column in table.columns and {more, less} <= table.rows.keys():
            values = [table.rows[row][table.columns.index(column)].value for row in (more, less)]
            found.append(round(values[0] - values[1], 3))
    return sorted(found)


def printed_claim(
    says: str,
    where: str,
    measure: Measure,
    more: str,
    less: str,
    tables: Sequence[str],
    rows: tuple[str, str] | None = None,
    column: str = AVERAGE,
    **rest: Any,
) -> Claim:
    """Return a claim with the differences that the paper prints for it, of which some may have the other sign.

    Args:
        rows: the two rows of the printed tables, if they are not named after the cells.
    """
    everywhere = printed(tables, *(rows or (more, less)), column)
    claimed = [difference for difference in everywhere if difference > 0]
    span = " to ".join(f"+{value:.1f}" for value in dict.fromkeys((claimed[0], claimed[-1])))
    if len(claimed) < len(everywhere):
        where += f", in {len(claimed)} with this sign"
    return Claim(says, f"{where}: {span}", measure, more, less, printed=claimed[0] / 100, **rest)


TABLE_1, TABLE_6 = ("apmpo/table1",), ("apmpo/table6",)
CONTROLS, ABLATIONS = ("agrae/table6",), ("agrae/table5",)
AAPO_TABLE_1 = ("aapo/table1_1.5b", "aapo/table1_llama", "aapo/table1_7b")

AGRAE = (
    Claim(
        "Negative-dominant training has a higher entropy than GRPO",
        "4.2, fig. 3",
        ENTROPY,
        "negative_dominant",
        "grpo",
        now="cannot tell: it measures the last quarter only; in the first two the entropy is higher, see below",
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
    printed_claim(
        "Negative-dominant is better than GRPO at k = 1",
        "table 6, 3 test sets",
        PASS_1,
        "negative_dominant",
        "grpo",
        CONTROLS,
        column="pass@1",
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
    *(
        printed_claim(
            f"A-GRAE is better than GRPO at {at}", where, measure, "agrae", "grpo", ("agrae/table2", "agrae/table4"),
            ("grpo_agrae", "grpo"), measure.name,
        )
        for measure, at, where in (
            (PASS_1, "k = 1", "5.3; tables 2 and 4, 2 models x 3 test sets"),
            (PASS_64, "a large k", "5.3; tables 2 and 4, pass@64, 2 models x 3 test sets"),
        )
    ),
    *(
        printed_claim(
            f"{name} is better than GRPO at {at}", where, measure, cell, "grpo", ABLATIONS, (row, "grpo"), measure.name
        )
        for name, cell, row, measure, at, where in (
            ("The sample level alone", "sample_level", "sample_level", PASS_1, "k = 1", "5.4; table 5, 3 test sets"),
            ("The group level alone", "group_level", "group_level", PASS_1, "k = 1", "5.4; table 5, 3 test sets"),
            ("The group level alone", "group_level", "group_level", PASS_64, "a large k",
             "5.4; table 5, pass@64, 3 test sets"),
        )
    ),
    *(
        printed_claim(
            says, "table 6, 3 test sets", measure, more, less, CONTROLS, column=measure.name,
            afterwards=True,
        )
        for says, measure, more, less in (
            ("Hard-focused is better than GRPO at k = 16", PASS_16, "hard_focused", "grpo"),
            ("Hard-focused is better than GRPO at k = 64", PASS_64, "hard_focused", "grpo"),
            ("Hard-focused is worse than GRPO at k = 1", PASS_1, "grpo", "hard_focused"),
            ("Easy-focused is better than GRPO at k = 1", PASS_1, "easy_focused", "grpo"),
        )
    ),
    *(
        Claim(says, where, measure, more, less, afterwards=True)
        for says, where, measure, more, less in (
            ("Easy-focused has more correct answers early than GRPO", "4.3, fig. 5", EARLY, "easy_focused", "grpo"),
            ("Hard-focused has more correct answers late than GRPO", "4.3, fig. 5", LATE, "hard_focused", "grpo"),
            ("Under negative-dominant training unsolved prompts rise", "D.3, fig. 9", UNSOLVED_CHANGE,
             "negative_dominant", 0.0),
            ("... more than under A-GRAE", "D.5: ASS has no collapse", UNSOLVED_CHANGE, "negative_dominant", "agrae"),
            ("Negative-dominant training has a higher entropy than GRPO in the first quarter", "4.2, fig. 3",
             ENTROPY_1, "negative_dominant", "grpo"),
            ("... in the second quarter", "4.2, fig. 3", ENTROPY_2, "negative_dominant", "grpo"),
        )
    ),
)  # fmt: skip

AAPO = (
    tuple(
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
                now="cannot be tested here: AAPO's advantages are divided by the deviation, GPG's are not; see below",
            ),
            Claim(
                f"G = {g}: AAPO is better than GRPO at equal samples, its reference's included",
                "6.2, table 1, at equal training data",
                PASS_1,
                "aapo",
                "grpo",
                f"g{g}",
                now="not the paper's comparison, which is at equal training data: see below",
            ),
            Claim(
                f"G = {g}: AAPO is better than GPG at equal samples",
                "6.2, table 1, at equal training data",
                PASS_1,
                "aapo",
                "gpg",
                f"g{g}",
                now="not the paper's comparison, which is at equal training data: see below",
            ),
        )
    )
    + tuple(
        claim
        for g, step in ((2, 300), (6, 100), (10, 60))  # AAPO's last step
        for claim in (
            *(
                printed_claim(
                    f"G = {g}: AAPO is better than {name} at equal steps",
                    f"6.2, table 1, averages of {3 if cell == 'grpo' else 4} models",
                    at_step(step),
                    "aapo",
                    cell,
                    AAPO_TABLE_1[:2] if cell == "grpo" else AAPO_TABLE_1,  # SimpleRL-Zero is the 7B table's row "grpo"
                    task=f"g{g}",
                    afterwards=True,
                )
                for name, cell in (("GRPO", "grpo"), ("GPG", "gpg"))
            ),
            Claim(
                f"G = {g}: GRPO is better than GPG at equal steps, which no margin explains",
                "-",
                at_step(step),
                "grpo",
                "gpg",
                f"g{g}",
                afterwards=True,
            ),
            Claim(
                f"G = {g}: no group has zero advantages only (6.4 says it of a device's responses)",
                '6.4, fig. 2: "no instance", per device',
                NO_SIGNAL,
                0.0,
                "aapo",
                f"g{g}",
                afterwards=True,
            ),
            Claim(
                f"G = {g}: AAPO's loss is mostly positive", "D.4, fig. 5", LOSS, "aapo", 0.0, f"g{g}", afterwards=True
            ),
        )
    )
)


def margin_claims(start: str) -> tuple[Claim, ...]:
    """Return the three primary claims about AAPO's margin, each with the same first words."""
    return (
        printed_claim(
            f"{start}AAPO is better than GRPO at equal steps", "6.2, table 1, averages of 3 models", LAST_THREE, "aapo",
            "grpo", AAPO_TABLE_1[:2], task=None,
        ),
        *(
            Claim(f"{start}AAPO is better than {says}", "4, eq. 5", LAST_THREE, "aapo", less, None)
            for says, less in (
                ("AAPO without the margin", "no_margin"), ("with reference rewards of other prompts", "shuffled"),
            )
        ),
    )  # fmt: skip


MARGIN = (
    *margin_claims(""),
    Claim("At the last step alone: AAPO is better than GRPO", "-", PASS_1, "aapo", "grpo", None, afterwards=True),
    *(
        Claim(says, "-", LAST_THREE, more, less, None, afterwards=True)
        for says, more, less in (
            ("A margin that is the same for all prompts is better than none", "constant", "no_margin"),
            ("AAPO is better than with a margin that is the same for all prompts", "aapo", "constant"),
            ("Reference rewards of other prompts are better than no margin", "shuffled", "no_margin"),
            ("AAPO with the sample's deviation is better than with the population's", "aapo_sample", "aapo"),
            ("GRPO's mean over completions is better than one over a group's tokens", "grpo", "no_margin"),
        )
    ),
)  # fmt: skip
"""AAPO's margin: the three primary claims, registered in aapo_margin.yaml, and exploratory ones."""

MARGIN_6 = margin_claims("Groups of six: ")
"""The same in groups of six, registered in aapo_margin_6.yaml."""

PASS_32 = at_end("pass@32", "pass@32")

REGIME = (
    *(
        printed_claim(
            f"Mixed lengths: {name} is better than GRPO at {at}", where, measure, cell, "grpo",
            ("agrae/table2", "agrae/table4"), ("grpo_agrae", "grpo"), column, task=None,
        )
        for name, cell, measure, at, column, where in (
            ("A-GRAE", "agrae", LAST_THREE, "k = 1", "pass@1", "5.3; tables 2 and 4, 2 models x 3 test sets"),
            ("A-GRAE", "agrae", PASS_32, "k = 32", "pass@32", "5.3; tables 2 and 4, 2 models x 3 test sets"),
            ("A-GRAE with alpha 0.5", "agrae_half", LAST_THREE, "k = 1", "pass@1",
             "5.3; tables 2 and 4, 2 models x 3 test sets"),
        )
    ),
    *(
        Claim(f"Mixed lengths: {says} at {at}", where, measure, more, "grpo", None, afterwards=True)
        for says, more, where in (
            ("A-GRAE with alpha 0.5 is better than GRPO", "agrae_half", "5.3"),
            ("the sample level alone is better than GRPO", "sample_level", "5.4"),
            ("the group level alone is better than GRPO", "group_level", "5.4"),
        )
        for measure, at in ((LAST_THREE, "k = 1"), (PASS_32, "k = 32"))
        if (more, at) != ("agrae_half", "k = 1")
    ),
)  # fmt: skip
"""A-GRAE in its regime: the three primary claims, registered in agrae_regime.yaml, and exploratory ones."""

SHORT = "cannot be tested here: answers of 8 tokens leave no room for diversity"

APMPO = (
    *(
        printed_claim(
            f"APMPO is better than {name}", "5.2.1, table 1, averages of 3 models", PASS_1, "apmpo", cell, TABLE_1,
        )
        for name, cell in (("GRPO", "grpo"), ("DAPO", "dapo"), ("GMPO", "gmpo"))
    ),
    *(
        printed_claim(says, "5.2.3, table 6, averages of 3 models", PASS_1, more, less, TABLE_6)
        for says, more, less in (
            ("Adaptive clipping alone is better than GRPO", "fac", "grpo"),
            ("The power mean alone is better than GRPO", "pmpo", "grpo"),
            ("Both together are better than adaptive clipping alone", "apmpo", "fac"),
            ("Both together are better than the power mean alone", "apmpo", "pmpo"),
        )
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
            now=SHORT,
        )
        for measure, found in (
            (SELF_BLEU, (("GRPO", "DAPO", "0.76, 0.71"), ("DAPO", "GMPO", "0.71, 0.65"),
                         ("GMPO", "APMPO", "0.65, 0.54"))),
            (COSINE, (("GRPO", "DAPO", "0.84, 0.79"), ("DAPO", "GMPO", "0.79, 0.75"),
                      ("GMPO", "APMPO", "0.75, 0.66"))),
        )
        for more, less, values in found
    ),
)  # fmt: skip

SAMPLES = 128 * 16
"""Answers of a validation of the study of the clip."""


def counted(share: float | None) -> float | None:
    """Return a share of a validation's answers as it was before six digits of it were written: equal ones are equal."""
    return None if share is None else round(share * SAMPLES) / SAMPLES


SUMS_1 = Measure("pass@1", lambda run: counted(run["last"].get("val/arithmetic/pass@1")))
SUMS_THREE = Measure(
    "pass@1, mean of the validations at steps 64, 128 and 192",
    lambda run: complete_mean([counted(run["validations"].get(str(step))) for step in (64, 128, 192)]),
)

GATE = (
    *(
        printed_claim(
            f"Four epochs: APMPO is better than {name}", "5.2.1, table 1, averages of 3 models", SUMS_1,
            "apmpo", cell, TABLE_1, task=None,
        )
        for name, cell in (("GRPO", "grpo"), ("GMPO", "gmpo"))
    ),
    Claim("Four epochs: APMPO is better than an upper clip of 0.33", "4.3", SUMS_1, "apmpo", "static", None),
    *(
        Claim(f"Four epochs: {says}", "-", SUMS_1, more, "grpo", None, afterwards=True)
        for says, more in (
            ("an upper clip of 0.33 is better than GRPO's 0.2", "static"), ("GMPO is better than GRPO", "gmpo"),
        )
    ),
    *(
        Claim(f"Three validations: {says}", "-", SUMS_THREE, more, less, None, afterwards=True)
        for says, more, less in (
            ("APMPO is better than GRPO", "apmpo", "grpo"), ("APMPO is better than GMPO", "apmpo", "gmpo"),
            ("APMPO is better than an upper clip of 0.33", "apmpo", "static"),
            ("GMPO is better than GRPO", "gmpo", "grpo"),
        )
    ),
)  # fmt: skip
"""APMPO where ratios leave the clip: the three primary claims, registered in apmpo_gate.yaml, and exploratory ones."""
