"""Choice: every way to name an option, and answers that try to name all of them."""

from __future__ import annotations

import random
import re
import time
from typing import Any

import pytest

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import Choice, OpenAnswer
from lit_rlvr.rewards.answers.find import final_answer, last_boxed
from lit_rlvr.types import Completion, Sample

OPTIONS = ("Liver", "Left lung", "Spleen", "Right lung")
LUNG = Sample("a", "?", "B", options=OPTIONS)


def judge(text: str, sample: Sample = LUNG, reason: str = "stop", **options: Any) -> tuple[float, bool | None, str]:
    (result,) = Choice(**options).score([(Completion(text, (1,), reason), sample)])  # type: ignore[arg-type]
    return result.value, result.correct, result.status


RIGHT, WRONG, NONE = (1.0, True, "ok"), (0.0, False, "ok"), (0.0, False, "parse_fail")


@pytest.mark.parametrize(
    "answer",
    ["B", "b", "(B)", "B.", "B)", "(b).", "B:", "\\text{B}", "$B$", "**B**", "option B", "Choice B", "Left lung",
     "left lung.", "B) Left lung", "B: left lung", "(B) Left lung", "B Left lung", "\\text{Left lung}"],
)  # fmt: skip
def test_ways_to_name_the_option(answer: str) -> None:
    assert judge(f"<think>A? no.</think> It is \\boxed{{{answer}}}.") == RIGHT


@pytest.mark.parametrize("answer", ["A", "D", "(C)", "Right lung", "C) Spleen", "A."])
def test_other_options_are_wrong(answer: str) -> None:
    assert judge(f"\\boxed{{{answer}}}") == WRONG


@pytest.mark.parametrize(
    "answer",
    ["", "A or B", "A, B", "A and B", "AB", "A B C D", "B) Right lung", "B) A) C)", "E", "B/A", "not B", "lung",
     "Left lung, Liver", "B because it is not A", "A) Liver B) Left lung C) Spleen D) Right lung", "A mass", "1"],
)  # fmt: skip
def test_answers_that_name_several_or_none(answer: str) -> None:
    assert judge(f"\\boxed{{{answer}}}") == NONE


def test_the_answer_is_found_where_it_stands() -> None:
    assert judge("\\boxed{A} no, \\boxed{B}") == RIGHT
    assert judge("\\boxed{B} no, \\boxed{A}") == WRONG
    assert judge("<think>\\boxed{B}</think> \\boxed{A}") == WRONG
    assert judge("<think>\\boxed{B}</think> I do not know") == NONE
    assert judge("so <answer> B </answer>") == RIGHT
    assert judge("<answer>\\boxed{B}</answer>") == RIGHT
    assert judge("<answer>A</answer> and then <answer>B) Left lung</answer>") == RIGHT
    assert judge("The answer is B.") == RIGHT == judge("**Answer: B**") == judge("I think\n(B)")
    assert judge("The answer is B or A.") == NONE == judge("A mass is seen.") == judge("")
    assert judge("\\boxed{B") == NONE


def test_boxed_only_takes_no_answer_outside_a_box() -> None:
    assert judge("The answer is B", boxed_only=True) == NONE
    assert judge("\\boxed{B}", boxed_only=True) == RIGHT
    assert judge("\\boxed{B}", reason="length") == WRONG
    assert judge("\\boxed{B}", reason="length", truncated_is_wrong=False) == RIGHT


def test_the_reference_may_be_the_options_text() -> None:
    sample = Sample("a", "?", "left lung", options=OPTIONS)
    assert judge("\\boxed{B}", sample) == RIGHT == judge("\\boxed{Left lung}", sample)
    assert judge("\\boxed{D}", sample) == WRONG


def test_letters_alone_where_the_options_are_not_known() -> None:
    sample = Sample("a", "?", "C")
    assert judge("\\boxed{C}", sample) == RIGHT == judge("\\boxed{C: 35 degrees}", sample)
    assert judge("\\boxed{A}", sample) == WRONG
    for answer in ("A) B) C)", "C or A", "35", "C A"):
        assert judge(f"\\boxed{{{answer}}}", sample) == NONE, answer


def test_letters_may_be_options_and_options_may_be_equal() -> None:
    assert judge("\\boxed{C}", Sample("a", "?", "C", options=tuple("ABCDE"))) == RIGHT
    twice = Sample("a", "?", "A", options=("none", "some", "None"))
    assert judge("\\boxed{none}", twice) == RIGHT == judge("\\boxed{A}", twice)
    assert judge("\\boxed{B}", twice) == WRONG


@pytest.mark.parametrize("answer", ["yes", "Yes.", "Yes, on the left", "**Yes**", "yes it is"])
def test_yes_and_no_are_judged(answer: str) -> None:
    yes, no = Sample("a", "?", "yes"), Sample("a", "?", "No")
    listed = Sample("a", "?", "B", options=("No", "Yes"))
    assert judge(f"\\boxed{{{answer}}}", yes) == RIGHT == judge(f"\\boxed{{{answer}}}", listed)
    assert judge(f"\\boxed{{{answer}}}", no) == WRONG
    assert judge("\\boxed{No}", no) == RIGHT == judge("\\boxed{B}", listed)


@pytest.mark.parametrize("answer", ["yes and no", "no, wait, yes", "not sure", "There is no lesion", "yesterday", "A"])
def test_an_answer_that_is_neither_yes_nor_no_is_none(answer: str) -> None:
    assert judge(f"\\boxed{{{answer}}}", Sample("a", "?", "yes")) == NONE
    assert judge(f"\\boxed{{{answer}}}", Sample("a", "?", "no")) == NONE


TEXTS = ("lung", "B", "no", "heart")


def test_other_samples_go_to_the_other_reward_in_order() -> None:
    samples = [Sample("a", "?", "left lung"), LUNG, Sample("b", "?", "yes"), Sample("c", "?", "heart")]
    pairs = [(Completion(f"\\boxed{{{t}}}", (1,), "stop"), s) for t, s in zip(TEXTS, samples, strict=True)]
    results = Choice(otherwise=OpenAnswer()).score(pairs)
    assert [r.correct for r in results] == [False, True, False, True]
    assert [r.value for r in results] == [pytest.approx(2 / 3), 1.0, 0.0, 1.0]
    with pytest.raises(UserError, match=r"'left lung' of a is neither a letter nor yes or no nor one of its options"):
        Choice().score(pairs)


def test_final_answer_and_boxes() -> None:
    assert final_answer("a\n\nlast line \n") == "last line" and final_answer("") == ""
    assert last_boxed("\\boxed{\\frac{1}{2}}") == "\\frac{1}{2}" and last_boxed("\\\\boxed{5}") == "5"
    assert last_boxed("\\boxed{a \\} b}") == "a \\} b" and last_boxed("\\boxed{1} \\boxed{2") == "1"


def slow_last_boxed(text: str) -> str | None:
    """From the last box to the first, each read to its own closing brace."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth = 0
        for brace in re.finditer(r"\\.|[{}]", text[start + len("\\boxed") :], re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                begin = start + len("\\boxed")
                return text[begin + 1 : begin + brace.start()].strip().rstrip(". ")
        start = text.rfind("\\boxed{", 0, start)
    return None


def test_last_boxed_is_the_slow_loop() -> None:
    draw = random.Random(0)
    pieces = ["\\boxed{", "{", "}", "x", "\\{", "\\}", " ", "\\", "\\frac"]
    for _ in range(20000):
        text = "".join(draw.choices(pieces, k=draw.randint(1, 9)))
        assert last_boxed(text) == slow_last_boxed(text), text


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "\\boxed ", "\\boxed{B} ", "<answer>", "B) ", "\\text{", " ", "yes ", "answer is "]
)
def test_long_hostile_answers_are_quick(piece: str) -> None:
    started = time.process_time()
    judge(piece * 20000)
    judge(piece * 20000, Sample("a", "?", "yes"))
    assert time.process_time() - started < 2
