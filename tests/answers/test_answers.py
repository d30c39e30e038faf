"""The stages of the answer checker, each by itself, and the judged answers of `answers.jsonl` by kind."""

import json
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import pytest
import sympy

from lit_rlvr.answers import check, explain_check
from lit_rlvr.answers.characters import plain_characters
from lit_rlvr.answers.find import Found, find_answer
from lit_rlvr.answers.parse import parse
from lit_rlvr.answers.units import read_numeral, read_unit
from lit_rlvr.answers.values import Number, Parts, Percentage, Quantity, Region, Series, Text
from lit_rlvr.speech.thoughts import without_thoughts

JUDGED = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text().splitlines()]


def test_judged_answers() -> None:
    """Every kind has right and wrong answers, so that neither a checker that pays all nor one that pays none passes."""
    wrong = [
        (row["kind"], row["reference"], row["completion"], row["right"])
        for row in JUDGED
        if check(row["completion"], row["reference"])[0] is not row["right"]
    ]
    assert wrong == []
    verdicts = defaultdict(set)
    for row in JUDGED:
        verdicts[row["kind"]].add(row["right"])
    assert len(verdicts) > 15 and all(found == {True, False} for found in verdicts.values()), verdicts
    assert sum(not row["right"] for row in JUDGED) > len(JUDGED) / 5


SENTENCES = (
    "We add the parts.\n\nThe total is {}.",
    "So we get\n{}",
    "Therefore, the value of the expression is {}.",
    "Adding 4 and 7 gives the rest.\nHence the result equals {}.",
    "There were 12 at first, and 3 left.\nThe answer to the problem is therefore {}",
)
VALUES = (
    "9", "-3", "12.5", "1,250", "\\frac{3}{4}", "2\\sqrt{3}", "x^2+1", "75\\%", "\\pi", "(2,3)",
)  # fmt: skip
DELIMITERS = ("{}", "${}$", "\\({}\\)", "\\( {} \\)", "$$\n{}\n$$", "\\[\n{}\n\\]")


def test_ordinary_endings() -> None:
    """Those of texts as models write them; another value is wrong in each."""
    for sentence in SENTENCES:
        for value, other in zip(VALUES, VALUES[1:] + VALUES[:1], strict=True):
            for delimiter in DELIMITERS:
                text = sentence.format(delimiter.format(value))
                assert check(text, value)[0] and not check(text, other)[0], (text, value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("6 + 7 = 13\n#### 13\nThat took 2 steps.", Found("13", "hash")),
        ("#### Step 1: add\n7 + 6\n#### 13", Found("13", "hash")),
        ("#### 1. Add the apples\nThe answer is 13.", Found("13.", "phrase")),
        ("<answer>7</answer> in 2 steps", Found("7", "tag")),
        ("first <answer>\\boxed{7}</answer>", Found("7", "box")),
        ("\\boxed{5}, no: \\boxed{\\frac{1}{2", Found("", "box")),
        ("(a) \\boxed{3} (b) \\boxed{4}", Found("3, 4", "box")),
        ("\\boxed{3} or \\boxed{4}", Found("4", "box", ("3", "4"), "or")),
        ("\\boxed{3}\n\n\\boxed{4}", Found("4", "box", ("3", "4"), "line")),
        ("<think>\\boxed{7}", Found("", "line")),
        ("The answer is:\n\n**41**\n\nI hope this helps.", Found("41", "phrase")),
        ("答案是 5", Found("5", "phrase")),
        ("So she has 12 apples.<|im_end|>", Found("So she has 12 apples.", "line")),
    ],
)
def test_find(text: str, found: Found) -> None:
    assert find_answer(text) == found


def test_thoughts_that_never_end_hold_no_answer_unless_they_may() -> None:
    assert without_thoughts("<think>a</think> b <think> c") == " b "
    assert without_thoughts("<think>\\boxed{7}", open_thoughts=True).endswith("\\boxed{7}")
    assert not check("<think>\\boxed{7}", "7")[0]
    assert check("<think>\\boxed{7}", "7", open_thoughts=True)[0]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("x²", "x^{2}"), ("10⁻³", "10^{-3}"), ("2⅓", "2 1/3"), ("½", "1/2"), ("x₁₂", "x_{12}"),
        ("∛8", "\\sqrt[3]{8}"), ("٣५７", "357"), ("\u20135", "-5"), ("\u22125", "-5"), ("\ufe635", "-5"),
        ("\u200b\ufeff5\u00a0", "5 "), ("3或4、5", "3 or 4, 5"),
    ],
)  # fmt: skip
def test_characters_that_change_the_meaning_are_not_dropped(text: str, plain: str) -> None:
    assert plain_characters(text) == plain


def values_of(text: str) -> list[object]:
    return [value for value in parse(text) if not isinstance(value, Text)]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("ABC", []),
        ("no", []),
        ("CO2", []),
        ("3:30", [Parts("time", (3, 30, 0, ""))]),
        ("3:2", [Parts("ratio", (3, 2))]),
        ("50%", [Percentage(Number(sympy.Integer(50)), 2)]),
        ("0.1666...", [Number(sympy.Rational(1, 6))]),
        ("0.00050", [Number(sympy.Rational(1, 2000), 5)]),
    ],
)
def test_a_text_is_read_by_its_type(text: str, values: list[object]) -> None:
    assert values_of(text) == values


def test_a_text_has_every_type_that_it_can_mean() -> None:
    assert {type(value) for value in values_of("(2,3)")} == {Series, Region}
    assert {type(value) for value in values_of("1,234")} == {Number, Series}
    assert values_of("100, 200")[0] == Series((parse("100"), parse("200")))
    (total,) = values_of("5 ft 3 in")
    assert (type(total), total.is_sum) == (Quantity, True) and total.number.value == sympy.Rational(63 * 127, 5000)


def test_units() -> None:
    assert read_unit("km/h") == (Fraction(5, 18), (("m", 1), ("s", -1)))
    assert read_unit("sq. ft.") == read_unit("square feet") == read_unit("ft^2")
    assert read_unit("m per second squared") == read_unit("m/s^2")
    assert read_unit("apples") is None and read_unit("n") is None, "a variable is no unit"
    assert read_unit("N") == read_unit("newtons")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("two hundred and five", 205),
        ("minus twenty-one", -21),
        ("three quarters", Fraction(3, 4)),
        ("a dozen", 12),
        ("five apples", None),
    ],
)
def test_numerals(text: str, value: Fraction | None) -> None:
    assert read_numeral(text) == value


def test_decimals_mean_the_same_for_whole_numbers_and_decimals() -> None:
    for reference in ("3", "3.0"):
        assert check("\\boxed{3.0000001}", reference)[0]
        assert not check("\\boxed{3.00001}", reference)[0]
        assert check("\\boxed{3.004}", reference, decimals=2)[0]
    assert not check("\\boxed{0.0000004}", "0.0000003")[0], "small numbers by their digits"
    assert check("\\boxed{\\frac{7}{3}}", "2.33", reference_precision=True)[0]
    assert not check("\\boxed{\\frac{7}{3}}", "2.33")[0]


def test_one_of_several_references_suffices() -> None:
    assert check("\\boxed{three}", ("4", "3"))[0]
    assert not check("\\boxed{5}", ("4", "3"))[0]


def test_the_stages_are_explained() -> None:
    stages = dict(explain_check("The answer is 5 million.", "5"))
    assert stages["found"] == "'5 million.' (behind \"answer\")" and stages["taken of it"] == "'5 million'"
    assert stages["the answer is"].startswith("number 5000000") and "number 5" in stages["the reference is"]
    assert stages["compared"] == "not equal" and stages["status"] == "ok"
    assert dict(explain_check("<think>\\boxed{5}", "5"))["found"] == "no answer"
    assert dict(explain_check("3 + 4", "7"))["compared"] == "an unevaluated sum or product"
