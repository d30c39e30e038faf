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
    assert (result.value, result.correct, result.status) == (pytest.approx(score), False, "ok")
    assert judge(f"\\boxed{{{answer}}}", exact=True).value == 0.0


def test_exact_gives_all_or_nothing() -> None:
    assert judge("\\boxed{left lower lung}", exact=True) == RewardResult(1.0, True, "ok", "left lower lung")


def test_the_answer_is_found_where_it_stands() -> None:
    assert judge("It could be the heart.\nThe answer is left lower lung.").correct
    assert judge("<answer>left lower lung</answer> for sure").correct
    assert not judge("left lower lung\nor not").correct
    assert not judge("The answer is left lower lung", boxed_only=True).correct


def test_a_completion_without_an_answer_is_a_parse_failure() -> None:
    for text in ("", "\\boxed{}", "...", "\\boxed{,}"):
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


@pytest.mark.parametrize("gold", ["", "...", "?"])
def test_a_reference_without_words_is_refused_at_load_and_at_a_rollout(gold: str) -> None:
    for sample in (
        Sample("a", "?", gold, source="my.jsonl:3"),
        Sample("a", "?", "b", source="my.jsonl:3", aliases=(gold,)),
    ):
        for refused in (lambda: OpenAnswer().check_reference(sample), lambda: judge("\\boxed{heart}", sample)):  # noqa: B023
            with pytest.raises(UserError, match=r"rewards.OpenAnswer: the answer .* of my.jsonl:3 has no words"):
                refused()
    OpenAnswer().check_reference(LUNG)


@pytest.mark.parametrize(
    ("gold", "other"),
    [("Hepatitis A", "Hepatitis"), ("A positive", "positive"), ("vitamin A", "vitamin"), ("A-type", "type"), ("A", "B"),
     ("Vitamin A deficiency", "vitamin deficiency"), ("type A personality", "type personality"), ("A minor", "minor"),
     ("Influenza A virus", "influenza virus"), ("plan A", "the plan"), ("A/B testing", "B testing"), ("Q&A", "Q"),
     ("the", "a"), ("an", "the"), ("The A", "the")],
)  # fmt: skip
def test_letters_and_lone_articles_are_part_of_an_answer(gold: str, other: str) -> None:
    assert judge(f"\\boxed{{{gold}}}", Sample("a", "?", gold)).correct
    assert judge(f"\\boxed{{{gold.lower()}}}", Sample("a", "?", gold)).correct
    assert not judge(f"\\boxed{{{other}}}", Sample("a", "?", gold)).correct
    assert not judge(f"\\boxed{{{gold}}}", Sample("a", "?", other)).correct


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("A dog", "dog"), ("dog", "a dog"), ("The Beatles", "Beatles"), ("in the lung", "in a lung"), ("an apple",
     "apple"),
     ("HE IS A MAN", "he is man"), ("the cat", "A cat"), ("A", "(A)"), ("the", "The.")],
)  # fmt: skip
def test_articles_do_not_count(gold: str, answer: str) -> None:
    result = judge(f"\\boxed{{{answer}}}", Sample("a", "?", gold))
    assert (result.value, result.correct) == (1.0, True)


def test_the_best_of_several_references_counts() -> None:
    sample = Sample("a", "?", "left lower lung", aliases=("LLL", "lower lobe"))
    assert judge("\\boxed{lll}", sample) == RewardResult(1.0, True, "ok", "lll")
    partly = judge("\\boxed{lobe}", sample)
    assert partly.value == pytest.approx(2 / 3) and partly.correct is False
    assert judge("\\boxed{lobe}", sample, exact=True).value == 0.0


def test_numbers_and_scripts_are_compared() -> None:
    assert [word.text for word in words("0.5 cm, T2-weighted")] == ["0.5", "cm", "t2", "weighted"]
    assert [word.text for word in words("$\\text{L\u00e9sion}$ \u80ba")] == ["l\u00e9sion", "\u80ba"]
    assert judge("\\boxed{0.5}", Sample("a", "?", "5")).value == 0.0
