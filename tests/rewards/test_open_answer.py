"""OpenAnswer against F1 scores computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import OpenAnswer
from lit_rlvr.rewards.open_answer import words
from lit_rlvr.types import Completion, RewardResult, Sample

LUNG = Sample("a", "?", "the left lower lung")


def judge(text: str, sample: Sample = LUNG, reason: str = "stop", **options: Any) -> RewardResult:
    (result,) = OpenAnswer(**options).score([(Completion(text, (1,), reason), sample)])  # type: ignore[arg-type]
    return result


@pytest.mark.parametrize(
    "answer", ["left lower lung", "The Left, lower lung.", "**left** lower\nlung", "a left lower lung"]
)
def test_case_punctuation_and_articles_do_not_count(answer: str) -> None:
    assert judge(f"<think>hm</think>\\boxed{{{answer}}}") == RewardResult(
        1.0, True, "ok", judge(f"\\boxed{{{answer}}}").detail
    )


@pytest.mark.parametrize(
    "answer,score",
    [
        ("left lung", 2 * 2 / (2 + 3)),  # precision 1, recall 2/3
        ("left lower lung lobe, probably", 2 * 3 / (5 + 3)),  # precision 3/5, recall 1
        ("lung lung lung", 2 * 1 / (3 + 3)),  # a repeated word counts as often as the reference has it
        ("lung lower left", 1.0),  # the same words in another order
        ("heart", 0.0),
        ("liver heart brain kidney left lower lung spleen bone", 2 * 3 / (9 + 3)),  # listing everything
    ],
)
def test_f1_counts_words(answer: str, score: float) -> None:
    result = judge(f"\\boxed{{{answer}}}")
    assert result.value == pytest.approx(score) and result.correct is False and result.status == "ok"
    assert judge(f"\\boxed{{{answer}}}", exact=True).value == 0.0


def test_exact_gives_all_or_nothing() -> None:
    assert judge("\\boxed{left lower lung}", exact=True) == RewardResult(1.0, True, "ok", "left lower lung")


def test_the_answer_is_found_where_it_stands() -> None:
    assert judge("It could be the heart.\nThe answer is left lower lung.").correct
    assert judge("<answer>left lower lung</answer> for sure").correct
    assert not judge("left lower lung\nor not").correct
    assert not judge("The answer is left lower lung", boxed_only=True).correct


def test_a_completion_without_an_answer_is_a_parse_failure() -> None:
    for text in ("", "\\boxed{}", "...", "\\boxed{the}"):
        result = judge(text)
        assert (result.value, result.correct, result.status) == (0.0, False, "parse_fail"), text


@pytest.mark.parametrize(
    ("gold", "other"),
    [("-5", "5"), ("1/2", "1 2"), ("C++", "C"), ("C#", "C"), ("O-", "O+"), ("<5", ">5"), ("5%", "5"), (".5", "5")],
)
def test_signs_count(gold: str, other: str) -> None:
    for exact in (False, True):
        assert judge(f"\\boxed{{{gold}}}", Sample("a", "?", gold), exact=exact).correct
        for answer, wanted in ((gold, other), (other, gold)):
            assert not judge(f"\\boxed{{{answer}}}", Sample("a", "?", wanted), exact=exact).correct


@pytest.mark.parametrize("gold", ["", "...", "the"])
def test_a_reference_without_words_is_refused(gold: str) -> None:
    with pytest.raises(UserError, match=r"rewards.OpenAnswer: the answer .* of my.jsonl:3 has no words"):
        judge("\\boxed{heart}", Sample("a", "?", gold, source="my.jsonl:3"))


def test_a_truncated_answer_is_judged_as_asked() -> None:
    assert judge("\\boxed{left lower lung}", reason="length") == RewardResult(0.0, False, "ok", "cut off")
    assert judge("\\boxed{left lower lung}", reason="length", truncated_is_wrong=False).correct


def test_numbers_and_scripts_are_compared() -> None:
    assert words("0.5 cm, T2-weighted") == ["0.5", "cm", "t2", "weighted"]
    assert words("$\\text{L\u00e9sion}$ \u80ba") == ["l\u00e9sion", "\u80ba"]
    assert judge("\\boxed{0.5}", Sample("a", "?", "5")).value == 0.0
