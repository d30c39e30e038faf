"""Choice: every way to name an option, and answers that try to name all of them."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hostile_answers import assert_linear

from lit_rlvr.answers.find import last_boxed
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import Choice, OpenAnswer
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
     "Left lung, Liver", "A) Liver B) Left lung C) Spleen D) Right lung", "A mass", "1"],
)  # fmt: skip
def test_answers_that_name_several_or_none(answer: str) -> None:
    assert judge(f"\\boxed{{{answer}}}") == NONE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{A} no, \\boxed{B}", RIGHT),
        ("\\boxed{B} no, \\boxed{A}", WRONG),
        ("<think>\\boxed{B}</think> \\boxed{A}", WRONG),
        ("<think>\\boxed{B}</think> I do not know", NONE),
        ("so <answer> B </answer>", RIGHT),
        ("<answer>\\boxed{B}</answer>", RIGHT),
        ("<answer>A</answer> and then <answer>B) Left lung</answer>", RIGHT),
        ("The answer is B.", RIGHT),
        ("**Answer: B**", RIGHT),
        ("I think\n(B)", RIGHT),
        ("The answer is B or A.", NONE),
        ("A mass is seen.", NONE),
        ("", NONE),
        ("\\boxed{B", NONE),
    ],
)
def test_the_answer_is_found_where_it_stands(text: str, found: tuple[float, bool | None, str]) -> None:
    assert judge(text) == found


PETS = Sample("a", "?", "B", options=("cat", "dog", "cow"))


@pytest.mark.parametrize(
    "text",
    [
        "The answer is B because A is too small.", "The answer is B, the dog.", "The answer is B (dog).",
        "The answer is B - dog", "Answer: B, since dogs bark", "\\boxed{B because it is not A}",
        "Answer: B\nExplanation: it barks", "**Answer:** B\n\n**Explanation:** A meows, C gives milk.",
        "Answer: B. A is too small, and C gives milk.", "B\n\nDogs bark.", "(B) dog\n\nA cat meows.",
        "**B) dog**\n\n- A is wrong: cats meow.\n- C is wrong: cows moo.",
        "The correct option is B.", "The correct answer is clearly option (B).", "So B.", "B is correct.",
        "Therefore, B is the correct answer.", "Option B is right, because dogs bark.", "I choose B because it barks.",
        "I would go with (B).", "It must be B, as cats do not bark.", "Since dogs bark, it must be B.",
        "Without A and C, B remains.", "I pick option B over A.",
        "Based on the sound, B is the best choice.", "The best answer here is B: dog", "The answer is: **B**",
        "Final answer: `B`", "The answer is B, not A.", "It is not A but B.", "A is wrong, so B.",
        "The answer is B rather than A.", "The answer is 'B'.", "The answer is [B]", "The answer is \\(B\\).",
        "Answer: option b", "answer: b", "The answer is the dog.", "It is a dog.",
        "The answer is dog, because it barks.",
        "The answer is as follows:\n\nB", "Answer:\nB", "Choice: B", "Selected option: (B)", "Answer = B",
        "B<|im_end|>",
        "Dogs bark\n</think>\nThe answer is B\n\nHere is why: cats meow.",
    ],
)  # fmt: skip
def test_sentences_around_a_letter_and_explanations_after_it(text: str) -> None:
    assert judge(text, PETS) == RIGHT


@pytest.mark.parametrize(
    "box",
    ["\\textbf{(B)}\\ dog", "\\bf{B}", "\\texttt{B}", "\\mathbf{B}", "{\\bf B}", "\\text{(B)}",
     "\\mathrm{(B)}\\; \\text{dog}",
     "\\textbf{B. dog}", "\\text{B: dog}", "\\text{Option B}", "(B)~\\text{dog}", "\\underline{B}", "The answer is B",
     "\\text{The answer is B}", "the dog", "a dog", "B, the dog", "\\displaystyle B", "[B]", "B\\ (\\text{dog})",
     "\uff22"],
)  # fmt: skip
def test_boxes_with_markup_around_a_letter(box: str) -> None:
    assert judge(f"\\boxed{{{box}}}", PETS) == RIGHT
    assert judge(f"<answer>{box}</answer>", PETS) == RIGHT


@pytest.mark.parametrize(
    "text",
    ["答案\uff1aB", "\uff08B\uff09", "答案是B。", "故选\uff1aB", "故选B。",
     "正确答案\uff1a\uff22", "选项B是正确的", "答案为【B】", "B、dog",
     "选B", "Ⓑ", "本题选B。",
     "答案\uff1aB\n解释\uff1a狗会叫", "答案是B\uff0c因为A太小", "应该选择B项", "Réponse : B", "Antwort: B", "정답: B"],
)  # fmt: skip
def test_letters_in_other_scripts(text: str) -> None:
    assert judge(text, PETS) == RIGHT


@pytest.mark.parametrize(
    "text",
    ["The answer is not B.", "It isn't B.", "B is wrong.", "B is not correct.", "Answer: neither A nor B",
     "not the dog",
     "The answer is A or B.", "Either A or B", "Both A and B", "A, B and C", "Answer: A/B/C", "A B C", "ABC",
     "The answer is (A) or (B).", "Option A or option B", "cat or dog", "the cat, the dog, the cow", "B) cat",
     "B, the cat",
     "A) cat\nB) dog\nC) cow", "A. cat\nB. dog", "A) cat; B) dog", "A: cat B: dog C: cow", "dog (A)",
     "A. a cat B. a dog",
     "A kind animal.", "A mammal that barks", "Vitamin B", "B cells", "D.C.", "B-cell", "B = 5", "B'll do", "a",
     "I think so",
     "The answer could be A, B or C.",
     "B? C? I am not sure.", "The answer is B.\nNo, the answer is not B.", "不是B",
     "A too small, B too large", "Answer: B or else A",
     "<think>The answer is B"],
)  # fmt: skip
def test_several_negated_or_no_letters_earn_nothing(text: str) -> None:
    assert judge(text, PETS)[:2] == (0.0, False)
    assert judge(f"\\boxed{{{text}}}", PETS)[:2] == (0.0, False)


def test_texts_with_letters_signs_and_units_are_read_as_texts() -> None:
    vitamins = Sample("a", "?", "B", options=("Vitamin D", "Vitamin A", "A positive", "C++"))
    assert judge("The answer is vitamin A.", vitamins) == RIGHT == judge("Vitamin A, because of the eyes", vitamins)
    assert judge("A positive", vitamins) == WRONG == judge("The answer is C++.", vitamins)
    power = Sample("a", "?", "A", options=("5 mW", "5 MW", "5", "10⁵", "105", "a cat", "the cat"))
    assert judge("\\boxed{5 mW}", power) == RIGHT
    for box in ("5 MW", "5", "the cat", "a cat", "105", "10⁵", "F", "A cat"):
        assert judge(f"\\boxed{{{box}}}", power) == WRONG, box
    assert judge("\\boxed{105}", Sample("a", "?", "D", options=power.options)) == WRONG
    for box in ("5 cm", "5.5", "5/2", "cat"):
        assert judge(f"\\boxed{{{box}}}", power) == NONE, box


@pytest.mark.parametrize(
    "answer", ["<answer>B</answer>", "(B)", "B.", "B) dog", "Option B", "option (b)", "[B]", "\\boxed{B}", "**B**",
               "\uff22",
               "(B) dog", "B. Dog", "B: Dog", "b", "B)"]
)  # fmt: skip
def test_gold_answers_in_other_forms_are_letters(answer: str) -> None:
    for options in ((), ("cat", "dog", "cow")):
        sample = Sample("a", "?", answer, options=options)
        Choice().check_reference(sample)
        assert judge("\\boxed{B}", sample) == RIGHT and judge("\\boxed{A}", sample) == WRONG


@pytest.mark.parametrize(
    "answer", ["A dog", "E. coli", "Paris", "", "A or B", "A, B", "AB", "not B", "B cells", "5", "K"]
)
def test_gold_answers_that_are_no_option_are_refused_at_load_and_at_a_rollout(answer: str) -> None:
    sample = Sample("a", "?", answer, source="f:1")
    message = f"rewards.Choice: the answer {answer!r} of f:1 is neither a letter nor yes or no"
    for refused in (lambda: Choice().check_reference(sample), lambda: judge("\\boxed{B}", sample)):
        with pytest.raises(UserError, match=re.escape(message)):
            refused()
    Choice(otherwise=OpenAnswer()).check_reference(Sample("a", "?", "A dog"))
    with pytest.raises(UserError, match="OpenAnswer"):
        Choice(otherwise=OpenAnswer()).check_reference(Sample("a", "?", "..."))


def test_each_of_several_references_is_right() -> None:
    sample = Sample("a", "?", "B", options=("cat", "dog", "cow"), aliases=("(C)",))
    assert judge("\\boxed{B}", sample) == RIGHT == judge("\\boxed{cow}", sample)
    assert judge("\\boxed{A}", sample) == WRONG and judge("\\boxed{B or C}", sample) == NONE
    with pytest.raises(UserError, match="the answer 'horse' of a is neither"):
        Choice().check_reference(Sample("a", "?", "B", options=("cat", "dog"), aliases=("horse",)))


@pytest.mark.parametrize(
    ("text", "options", "found"),
    [
        ("The answer is B", {"boxed_only": True}, NONE),
        ("\\boxed{B}", {"boxed_only": True}, RIGHT),
        ("\\boxed{B}", {"reason": "length"}, WRONG),
        ("\\boxed{B}", {"reason": "length", "truncated_is_wrong": False}, RIGHT),
    ],
)
def test_options_say_which_answers_count(text: str, options: dict[str, Any], found: tuple[float, bool, str]) -> None:
    assert judge(text, **options) == found


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
    assert_linear(lambda size: judge(piece * size), 5000)
    assert_linear(lambda size: judge(piece * size, Sample("a", "?", "yes")), 5000)
    assert_linear(lambda size: judge(f"é The answer is not{piece * size}x"), 5000)
