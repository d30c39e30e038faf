"""The check-up of a reward: it judges rewritten gold answers and short texts, and counts its errors by kind."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

from lit_rlvr.commands.check.gold import Gold, Kind, read_gold
from lit_rlvr.commands.check.rewrites import REWRITES
from lit_rlvr.commands.check.rewrites.registry import NUMERIC_KINDS
from lit_rlvr.commands.check.shortcuts import frequent_answers, shortcuts
from lit_rlvr.common.log import log
from lit_rlvr.common.terminal import progress_bar
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import Reward
from lit_rlvr.rewards.combine import pairs_of
from lit_rlvr.rewards.gold_answers import GOLD_FORMS
from lit_rlvr.rewards.judges.base import Judge
from lit_rlvr.rewards.judges.prompts import Question
from lit_rlvr.types import Completion, Pair, RewardResult, Sample

GOLD = "gold itself"
"""The rewrite that changes nothing."""
ENDINGS = (
    "The total is {}.",
    "So we get\n{}",
    "Hence the result equals ${}$.",
    "Adding both gives\n\\[\n{}\n\\]",
    "Therefore the value is \\( {} \\).",
    "There were 12 at first, and 3 left.\n\n$$\n{}\n$$",
)
"""Ends of completions that mark the answer by nothing."""
FORM_ROWS = 20
BATCH_ROWS = 8
MOST_OTHERS = 20
MOST_EXAMPLES = 3


@dataclass
class Rate:
    """A share of texts that a reward judges wrongly.

    Args:
        errors, texts: number of errors, and of texts.
    """

    errors: int = 0
    texts: int = 0

    @property
    def value(self) -> float:
        """The share; NaN without texts."""
        if self.texts:
            return self.errors / self.texts
        return math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Wilson (1927), which treats the texts as independent; (0, 1) without texts."""
        if not self.texts:
            return 0.0, 1.0
        z = NormalDist().inv_cdf(0.975)
        n = self.texts
        p = self.value
        middle = p + z * z / (2 * n)
        spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low = (middle - spread) / (1 + z * z / n)
        high = (middle + spread) / (1 + z * z / n)
        return (0.0 if self.errors == 0 else low), (1.0 if self.errors == n else high)

    def add(self, is_error: bool) -> None:
        """Count one more text."""
        self.errors += is_error
        self.texts += 1

    def as_json(self) -> dict[str, Any]:
        """Return the rate for `--json`."""
        low, high = self.interval
        return {"errors": self.errors, "texts": self.texts, "rate": self.value, "low": low, "high": high}


@dataclass(frozen=True)
class TriedText:
    """A text to judge.

    Args:
        kind: the rewrite, or the kind of short text.
        keeps: True if the text is a right answer, False if it is none.
        text: the completion.
        short: the short text that is tried on every row; "" for a rewrite.
    """

    kind: str
    keeps: bool
    text: str
    short: str = ""


@dataclass
class KindOfText:
    """The texts of one kind.

    Args:
        keeps: True if they are right answers, so that an error is one that is not paid.
        rate: the errors on them.
        examples: the first errors: the `text`, the row's `reference` answer, and the reward's `detail`.
    """

    keeps: bool
    rate: Rate = field(default_factory=Rate)
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Checkup:
    """The result of a check-up.

    Args:
        form: how completions hold the answer.
        rows_wanted: number of rows to judge; the time may have ended before.
        rows: number of rows judged.
        seconds: the time that it took.
        kinds: the texts by kind; rows whose gold completion is not paid count in the first kind alone.
        right_texts, wrong_texts: the errors on all right texts and on all wrong ones.
        short: short text -> its paid rows, and the rows where it is no answer.
        failures: detail -> number of texts on which the reward itself failed.
    """

    form: str
    rows_wanted: int
    rows: int = 0
    seconds: float = 0.0
    kinds: dict[str, KindOfText] = field(default_factory=dict)
    right_texts: Rate = field(default_factory=Rate)
    wrong_texts: Rate = field(default_factory=Rate)
    short: dict[str, Rate] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def gold(self) -> Rate:
        """The share of gold completions that are not paid."""
        if GOLD in self.kinds:
            return self.kinds[GOLD].rate
        return Rate()

    def add(self, text: TriedText, gold: Gold, paid: bool, gold_paid: bool, detail: str) -> None:
        """Count a judged text.

        Args:
            text: the judged text.
            gold: the row's reference answer.
            paid: whether the reward pays for the text.
            gold_paid: whether it pays for the gold completion.
            detail: what the reward says of the text.
        """
        is_error = paid != text.keeps
        (self.right_texts if text.keeps else self.wrong_texts).add(is_error)
        if text.short:
            self.short.setdefault(text.short, Rate()).add(is_error)
        if text.keeps and not gold_paid and text.kind != GOLD:
            return
        kind = self.kinds.setdefault(text.kind, KindOfText(text.keeps))
        kind.rate.add(is_error)
        if is_error and len(kind.examples) < MOST_EXAMPLES:
            kind.examples.append({"reference": gold.sample.answer, "text": text.text, "detail": detail})

    def as_json(self) -> dict[str, Any]:
        """Return the result for `--json`."""
        kinds = []
        for name, kind in self.kinds.items():
            kinds.append({"kind": name, "keeps": kind.keeps, **kind.rate.as_json(), "examples": kind.examples})
        short_texts = []
        for text, rate in self.paid_short_texts():
            short_texts.append({"text": text, **rate.as_json()})
        return {
            "form": self.form,
            "rows": self.rows,
            "rows_wanted": self.rows_wanted,
            "seconds": self.seconds,
            "gold": self.gold.as_json(),
            "false_negatives": self.right_texts.as_json(),
            "false_positives": self.wrong_texts.as_json(),
            "kinds": kinds,
            "short_texts": short_texts,
            "failures": self.failures,
        }

    def paid_short_texts(self) -> list[tuple[str, Rate]]:
        """Return the short texts that are paid without being an answer, the best paid first."""
        with_errors = []
        for text, rate in self.short.items():
            if rate.errors:
                with_errors.append((text, rate))
        return sorted(with_errors, key=lambda item: -item[1].value)


def check_reward(reward: Reward, samples: Sequence[Sample], seconds: float) -> Checkup:
    """Judge rewritten gold answers and short texts of some samples.

    Args:
        reward: the reward to check.
        samples: samples with reference answers.
        seconds: begin no further batch of rows after this time.

    Raises:
        UserError: the reward failed on every text.
    """
    start = time.monotonic()
    if isinstance(reward, Judge):
        log.info(
            "%s: asks its judge at most %d questions about %d rows; --rows and --seconds lower the number, "
            "server.max_calls limits it",
            reward.name,
            most_questions(reward, samples),
            len(samples),
        )
    form = choose_form(reward, samples)
    golds = read_golds(reward, samples, form)
    in_endings = reads_endings(reward, golds[:FORM_ROWS])
    frequent = frequent_answers(golds)
    checkup = Checkup(f"{form}, and in ordinary endings" if in_endings else form, len(golds))
    with progress_bar("rows", len(golds)) as one_more:
        for row in range(0, len(golds), BATCH_ROWS):
            batch = golds[row : row + BATCH_ROWS]
            if checkup.rows and time.monotonic() - start > seconds:
                break
            judge_rows(reward, batch, frequent, in_endings, checkup)
            for _ in batch:
                one_more()
    checkup.seconds = time.monotonic() - start
    if checkup.failures and not (checkup.right_texts.texts or checkup.wrong_texts.texts):
        raise UserError(f"check: reward {reward.name!r} failed on every text; first: {next(iter(checkup.failures))}")
    return checkup


def most_questions(reward: Judge, samples: Sequence[Sample]) -> int:
    """Return the most questions that a check-up asks a judge, each once; ask none."""
    questions: set[Question] = set()
    for form in GOLD_FORMS:
        questions |= reward.questions_about(form_pairs(read_golds(reward, samples[:FORM_ROWS], form)))
    golds = read_golds(reward, samples, next(iter(GOLD_FORMS)))
    questions |= reward.questions_about(ending_pairs(golds[:FORM_ROWS]))
    frequent = frequent_answers(golds)
    for gold in golds:
        questions |= reward.questions_about(pairs_of_texts(reward, gold, texts_of(gold, frequent, in_endings=True)))
    return len(questions)


def pairs_of_texts(reward: Reward, gold: Gold, texts: Sequence[TriedText]) -> list[Pair]:
    """Return the texts of a row as completions of it.

    For a reward that compares, each is a group with the gold completion and an empty text, and stands first in it:
    against all other texts it would ask far more questions than a run, whose groups are small.
    """
    if not reward.compares:
        return [(written(text.text), gold.sample) for text in texts]
    groups = ([text.text, gold.text if gold.answer else "", ""] for text in texts)
    pairs = []
    for group in groups:
        pairs += pairs_of(list(map(written, group)), gold.sample)
    return pairs


def judge_rows(
    reward: Reward, golds: Sequence[Gold], frequent: Sequence[str], in_endings: bool, checkup: Checkup
) -> None:
    """Judge all texts of some rows in one batch, and count them.

    Args:
        reward: the reward to check.
        golds: the rows' reference answers.
        frequent: the most frequent answers of the data.
        in_endings: whether answers also stand in `ENDINGS`.
        checkup: counts the judged texts.
    """
    texts = []
    for gold in golds:
        texts.append(texts_of(gold, frequent, in_endings))
    pairs = []
    for gold, row in zip(golds, texts, strict=True):
        pairs.extend(pairs_of_texts(reward, gold, row))
    results = iter(reward.score(pairs))
    for gold, row in zip(golds, texts, strict=True):
        groups = []
        if reward.compares:
            for _ in row:
                groups.append((next(results), next(results), next(results)))
        else:
            judged = [next(results) for _ in row]
            best = next((result for text, result in zip(row, judged, strict=True) if text.kind == GOLD), None)
            floor = next(result for text, result in zip(row, judged, strict=True) if not text.text)
            for result in judged:
                groups.append((result, best or floor, floor))
        gold_paid = any(is_paid(*group) for text, group in zip(row, groups, strict=True) if text.kind == GOLD)
        for text, (result, best, floor) in zip(row, groups, strict=True):
            if result.status == "error":
                checkup.failures[result.detail] = checkup.failures.get(result.detail, 0) + 1
            elif result.status != "unjudged":
                checkup.add(text, gold, is_paid(result, best, floor), gold_paid, result.detail)
        checkup.rows += 1


def is_paid(result: RewardResult, gold: RewardResult, floor: RewardResult) -> bool:
    """Return True if a reward calls a text right or, where it does not report that, if it pays as for the gold one.

    Args:
        result: the result of the text.
        gold: the result of the gold completion.
        floor: the result of an empty text.
    """
    if result.correct is not None:
        return result.correct
    return result.value >= gold.value and (gold.value > 0 or gold.value > floor.value)


def reads_endings(reward: Reward, golds: Sequence[Gold]) -> bool:
    """Return True if a reward pays most of the answers that it pays without the mark around them, too."""
    results = reward.score(ending_pairs(golds))
    groups = zip(results[::3], results[1::3], results[2::3], strict=True)
    paid = []
    for best, end, floor in groups:
        paid.append((is_paid(best, best, floor), is_paid(end, best, floor)))
    return 2 * sum(end for best, end in paid if best) > sum(best for best, _ in paid)


def ending_pairs(golds: Sequence[Gold]) -> list[Pair]:
    """Return the numbers among gold answers in the form that is tried, in an ordinary ending, and an empty text."""
    numbers = []
    for gold in golds:
        if gold.answer and gold.kind in NUMERIC_KINDS:
            numbers.append(gold)
    groups = []
    for gold in numbers:
        groups.append((gold, [gold.text, ENDINGS[0].format(gold.answer), ""]))
    pairs = []
    for gold, texts in groups:
        pairs += pairs_of(list(map(written, texts)), gold.sample)
    return pairs


def form_pairs(golds: Sequence[Gold]) -> list[Pair]:
    """Return gold answers in a form, each with an empty text."""
    groups = []
    for gold in golds:
        if gold.answer:
            groups.append((gold, [gold.text, ""]))
    pairs = []
    for gold, texts in groups:
        pairs += pairs_of(list(map(written, texts)), gold.sample)
    return pairs


def texts_of(gold: Gold, frequent: Sequence[str], in_endings: bool = False) -> list[TriedText]:
    """Return the texts of a row, each once: those of the rewrites, then the short texts.

    Args:
        gold: the row's reference answer.
        frequent: the most frequent answers of the data.
        in_endings: whether answers also stand in `ENDINGS`.
    """
    rewrites = []
    for rewrite in REWRITES:
        if gold.answer and gold.kind in rewrite.kinds:
            rewrites.append(rewrite)
    tried = []
    for rewrite in rewrites:
        text = rewrite.apply(gold)
        if text is not None:
            tried.append(TriedText(rewrite.name, rewrite.keeps, text))
    if in_endings and gold.kind in NUMERIC_KINDS:
        for ending in ENDINGS:
            tried.append(TriedText("in an ordinary ending", True, ending.format(gold.answer)))
        for number, rewrite in enumerate(rewrite for rewrite in rewrites if not rewrite.whole):
            kind = f"{'rewritten' if rewrite.keeps else 'wrong'}, in an ordinary ending"
            text = rewrite.apply(replace(gold, write=ENDINGS[number % len(ENDINGS)].format))
            if text is not None:
                tried.append(TriedText(kind, rewrite.keeps, text))
    tried.append(TriedText("empty", False, ""))
    tried += [TriedText(f"short text: {kind}", False, text, short) for kind, short, text in shortcuts(gold, frequent)]
    by_text: dict[str, TriedText] = {}
    for tried_text in tried:
        by_text.setdefault(tried_text.text, tried_text)
    return list(by_text.values())


def read_golds(reward: Reward, samples: Sequence[Sample], form: str) -> list[Gold]:
    """Return the gold answers of samples, each with answers of other rows that have the same kind."""
    golds = []
    for sample in samples:
        golds.append(read_gold(sample, writer(reward, sample, form)))
    others: dict[Kind, dict[str, None]] = {}
    for gold in golds:
        others.setdefault(gold.kind, {})[gold.answer] = None
    with_others = []
    for gold in golds:
        different = []
        for answer in others[gold.kind]:
            if answer != gold.answer:
                different.append(answer)
        with_others.append(replace(gold, others=tuple(different[:MOST_OTHERS])))
    return with_others


def writer(reward: Reward, sample: Sample, form: str) -> Callable[[str], str]:
    """Return the function that makes a completion of an answer: the reward's own or, without one, the form."""
    before, after = GOLD_FORMS.get(form, ("", ""))

    def write(answer: str) -> str:
        row = {**sample.row, "solution": answer} if sample.row.get("tests") else sample.row
        completion = reward.gold_completion(replace(sample, answer=answer, aliases=(), row=row))
        if completion is None:
            return f"{before}{answer}{after}"
        return completion

    return write


def choose_form(reward: Reward, samples: Sequence[Sample]) -> str:
    """Return the form of completions: the reward's own, or the one in which most gold answers of some rows are paid."""
    if any(reward.gold_completion(sample) is not None for sample in samples[:FORM_ROWS]):
        return "gold_completion of the reward"
    paid = {}
    for form in GOLD_FORMS:
        results = reward.score(form_pairs(read_golds(reward, samples[:FORM_ROWS], form)))
        are_paid = []
        for best, floor in zip(results[::2], results[1::2], strict=True):
            are_paid.append(is_paid(best, best, floor))
        paid[form] = sum(are_paid)
    return max(GOLD_FORMS, key=lambda form: paid[form])


def written(text: str) -> Completion:
    """Return a text as a completion that ended by itself; its tokens are not known, only about how many they are."""
    return Completion.made_elsewhere(text, max(1, len(text) // 4), "stop")
