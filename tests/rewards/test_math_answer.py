"""MathAnswer on a hand-written table, on answers made to break checkers, and on real references."""

from typing import Any

import pytest

from lit_rlvr.answers import check
from lit_rlvr.answers.find import last_boxed, normalise
from lit_rlvr.rewards import MathAnswer
from lit_rlvr.types import Completion, RewardResult, Sample


def completion(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text, (1,), finish_reason)  # type: ignore[arg-type]


def judge(texts: list[str], golds: list[str], **options: Any) -> list[RewardResult]:
    samples = [Sample(str(i), "?", gold) for i, gold in enumerate(golds)]
    return MathAnswer(**options).score([(completion(t), s) for t, s in zip(texts, samples, strict=True)])


RIGHT = [
    ("7", "7"),
    ("The answer is 7.", "7"),
    ("3 + 4 = 7", "7"),
    ("3 + 4 = 7.", "7"),
    ("The answer is 3 + 4 = 7", "7"),
    ("**7**", "7"),
    ("18.0", "18"),
    ("18", "18.0"),
    ("She pays $18.", "18"),
    ("9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18"),
    ("It costs 1,234 dollars", "1234"),
    ("1234", "1,234"),
    (r"\boxed{12{,}345}", "12345"),
    (r"\boxed{12\,345}", "12345"),
    (r"\boxed{12 345}", "12,345"),
    (r"\boxed{18}", "18"),
    (r"first \boxed{3}, no: \boxed{4}", "4"),
    (r"$\boxed{2}$ and $\boxed{3}$", "2, 3"),
    (r"$\boxed{5} \quad \text{and} \quad \boxed{6}$; \boxed{5}", "6, 5"),
    (r"\boxed{7}, \boxed{7}", "7"),
    (r"\( y_1 = \boxed{x} \) and \( y_2 = \boxed{2x} \)", "x, 2x"),
    (r"\boxed{7.}", "7"),
    (r"\boxed{18 dollars}", "18"),
    (r"\boxed{\$18.00}", "18"),
    (r"\boxed{18\text{ apples}}", "18"),
    (r"\boxed{5\text{ cm}}", "5"),
    ("5 cm", r"5\text{ cm}"),
    (r"\boxed{\frac{3}{4}}", "0.75"),
    (r"\boxed{\frac34}", r"\frac{3}{4}"),
    (r"The answer is $\dfrac{3}{4}$.", "3/4"),
    ("It is 3/4.", r"\frac{3}{4}"),
    (r"\boxed{1\frac{1}{2}}", r"\frac32"),
    (r"\boxed{10\%}", "0.1"),
    (r"\boxed{10}", r"10\%"),
    ("10%", "10"),
    (r"\boxed{1e3}", "1000"),
    (r"\boxed{1E3}", "1000"),
    (r"\boxed{-1.5e-2}", "-0.015"),
    (r"\boxed{2e+3 apples}", "2000"),
    (r"\boxed{1000}", "1e3"),
    ("The answer is 1e3", "1000"),
    (r"\boxed{2e-1}", "-1 + 2e"),
    (r"\boxed{2e}", "2 e"),
    (r"\boxed{(1,2)}", "(1, 2)"),
    ("The answer is (1, 2).", "(1,2)"),
    (r"\boxed{[1,2)}", "[1, 2)"),
    (r"\boxed{(-\infty,3]}", r"(-\infty, 3]"),
    (r"\boxed{x<3}", r"(-\infty,3)"),
    (r"\boxed{(1,2]\cup[3,4)}", r"(1,2] \cup [3,4)"),
    (r"\boxed{\{3,1,2\}}", r"\{1,2,3\}"),
    (r"\boxed{5 \text{ or } 6}", "6, 5"),
    (r"\boxed{\left\{1, 2\right\}}", r"\{2,1\}"),
    (r"\boxed{2\sqrt{2}}", r"\sqrt{8}"),
    (r"\boxed{x^2+2x+1}", "(x+1)^2"),
    (r"\boxed{x=7}", "7"),
    (r"\boxed{7}", "x=7"),
    ("x = \N{MINUS SIGN}3", "-3"),
    (r"\boxed{90^\circ}", "90"),
    (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\boxed{\text{(C)}}", "C"),
    ("The answer is (C).", "C"),
    (r"\boxed{Evelyn}", r"\text{Evelyn}"),
    ("Yes.", "yes"),
    (r"\boxed{\pi}", r"\pi"),
    ("<think>it is 3, \\boxed{3}</think> The answer is 4", "4"),
    (r"\boxed{3+4}", "3+4"),
]
WRONG = [
    ("8", "7", "ok"),
    ("The answer is 17.", "7", "ok"),
    ("3 + 4 = 8", "7", "ok"),
    ("7, no: 8", "7", "ok"),
    (r"7 \boxed{8}", "7", "ok"),
    (r"\boxed{7} then \boxed{8}", "7", "ok"),
    ("<think>\\boxed{7}</think> It is 8.", "7", "ok"),
    (r"\boxed{7\text{ or }8}", "7", "ok"),
    (r"\boxed{7, 8}", "7", "ok"),
    (r"\boxed{-7}", "7", "ok"),
    (r"\boxed{0.33}", r"\frac13", "ok"),
    (r"\boxed{[1,2]}", "(1,2)", "ok"),
    (r"\boxed{(2,1)}", "(1,2)", "ok"),
    (r"\boxed{\{1,2\}}", r"\{1,2,3\}", "ok"),
    (r"\boxed{1.234}", "1234", "ok"),
    (r"\boxed{1e3}", "1", "ok"),
    (r"\boxed{1e3}", "100", "ok"),
    (r"\boxed{1e}", "1", "ok"),
    (r"\boxed{2e}", "2", "ok"),
    (r"\boxed{e3}", "1000", "ok"),
    (r"\boxed{0x1e3}", "1000", "ok"),
    (r"\boxed{1e999999999}", "1", "ok"),
    (r"\boxed{y=7}", "x=7", "ok"),
    (r"\boxed{\text{(B)}}", "C", "ok"),
    ("3 + 4", "7", "parse_fail"),
    ("What is 3 + 4?", "7", "parse_fail"),
    (r"\boxed{3 \times 4}", "12", "parse_fail"),
    ("", "7", "parse_fail"),
    ("I do not know.", "7", "parse_fail"),
    (r"\boxed{}", "7", "parse_fail"),
    (r"the answer is \boxed{7", "7", "parse_fail"),
    ("7" + " and so on" * 300, "7", "parse_fail"),
]


def test_right_answers() -> None:
    results = judge([text for text, _ in RIGHT], [gold for _, gold in RIGHT])
    assert [case for case, result in zip(RIGHT, results, strict=True) if result.correct is not True] == []
    assert {(r.value, r.status) for r in results} == {(1.0, "ok")}


def test_wrong_answers() -> None:
    results = judge([text for text, _, _ in WRONG], [gold for _, gold, _ in WRONG])
    assert [(text, gold, result.status) for (text, gold, _), result in zip(WRONG, results, strict=True)] == WRONG
    assert {(r.value, r.correct) for r in results} == {(0.0, False)}


def test_a_reference_that_cannot_be_parsed_is_compared_as_text() -> None:
    golds = ["19{}43", "\\frac{", "$$"]
    assert [r.correct for r in judge(["\\boxed{19{}43}", "\\frac{", "5"], golds)] == [True, True, False]
    assert [r.correct for r in judge(["\\boxed{5}", "\\boxed{6}", "\\boxed{}"], golds)] == [False, False, False]


def test_boxed_only_takes_no_answer_outside_a_box() -> None:
    results = judge(["The answer is 7.", "so \\boxed{7}", "\\boxed{8} I mean 7"], ["7"] * 3, boxed_only=True)
    assert [(r.value, r.status) for r in results] == [(0.0, "parse_fail"), (1.0, "ok"), (0.0, "ok")]


def test_truncated_is_wrong_unless_told_otherwise() -> None:
    pair = (completion("The answer is 7", "length"), Sample("a", "?", "7"))
    assert MathAnswer()(*pair) == RewardResult(0.0, False, "ok", "cut off")
    assert MathAnswer(truncated_is_wrong=False)(*pair).value == 1.0
    both = [pair, (completion("7"), pair[1]), pair]
    assert [r.value for r in MathAnswer().score(both)] == [0.0, 1.0, 0.0]


BOMBS = {
    "tower": r"\boxed{10^{10^{10}}}",
    "nines": r"\boxed{9^{9^{9^9}}}",
    "sum": r"\boxed{\sum_{i=1}^{1000000000} \frac{1}{i}}",
    "power": r"\boxed{(a+b+c+d+e)^{50}}",
    "fractions": r"\boxed{" + r"\frac{" * 2000 + "1" + "}{2}" * 2000 + "}",
    "braces": r"\boxed{" + "{" * 5000 + "}" * 5000 + "}",
    "unclosed": r"\boxed{" * 14_000,
    "brackets": "\\[" * 50_000,
    "spaces": "1 " * 50_000,
    "digits": "1" * 100_000,
}


@pytest.mark.slow
def test_bombs_end_by_the_limits_and_score_zero() -> None:
    results = judge([*BOMBS.values(), "18"], ["18"] * (len(BOMBS) + 1), cpu_seconds=0.5)
    statuses = dict(zip(BOMBS, (r.status for r in results), strict=False))
    assert {(r.value, r.correct) for r in results[:-1]} == {(0.0, False)}
    assert "error" not in statuses.values()
    assert statuses["nines"] == "timeout", "so the limits have been tried"
    assert results[-1].correct is True


def test_words_in_a_row_are_no_bomb() -> None:
    """Patterns that can take the same words in many ways try all of them before they fail: 23 s for the first."""
    texts = {
        "division is undefined in mathematics.": False,
        "It appears that your problem is not yet ready to be solved.": False,
        "1 + 11 equals 22, using standard arithmetic with subtraction.": True,
        "\\boxed{it appears that the problem is not yet ready = 22}": True,
        "22 (" + "a" * 3000: False,
        "The field is $\\nabla = 3\\mathbf{B": False,
    }
    results = judge([*texts], ["22"] * len(texts))
    assert not {"timeout", "error"} & {result.status for result in results}
    assert [result.correct for result in results] == [*texts.values()]


def test_the_checker_itself_failing_is_an_error() -> None:
    reward = MathAnswer()
    reward.options = (*reward.options, "one too many")  # type: ignore[assignment]
    (result,) = reward.score([(completion("7"), Sample("a", "?", "7"))])
    assert (result.value, result.correct, result.status) == (0.0, None, "error")
    assert "TypeError" in result.detail


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1}, \boxed{2} \text{ for part (a) and } $\boxed 3$", "1, 2, 3"),
        (r"\boxed{1}. \boxed{2}, \boxed{3}.", "2, 3"),
        (r"\boxed{1} \boxed{2}", "2"),  # nothing says that both are meant
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{15\frac{39}{40}}, or \boxed{\frac{639}{40}}", r"15\frac{39}{40} or \frac{639}{40}"),
    ],
)
def test_boxes_with_separators_between_them_are_one_answer(text: str, answer: str) -> None:
    assert last_boxed(text) == answer


def test_one_value_in_two_forms_is_one_answer_and_two_options_are_none() -> None:
    assert check(r"\boxed{\frac{639}{40}}", r"15\frac{39}{40} or \frac{639}{40}")[0], "one value in two forms"
    assert not check(r"\boxed{3}", r"3 or \frac{2}{5}")[0]
    (hedge,) = judge([r"\boxed{A}, \boxed{B}"], ["B"])
    assert not hedge.correct


def test_normalise_keeps_what_distinguishes_answers() -> None:
    assert normalise(r" $\text{June 20}$. ") == "june 20"
    assert normalise(r"\left( 1 , 2 \right)") == normalise("(1,2)") != normalise("[1,2)")
    assert normalise("1 2") != normalise("12")


SOLUTIONS = {
    "gsm8k": (
        ["9 * 2 = $<<9*2=18>>18 a day.\n#### 18", "2+1=<<2+1=3>>3 bolts\n#### 3", "so $70,000\n#### 70,000"],
        ["18", "3", "70,000"],
    ),
    "math": ([r"So $x=\boxed{\frac{1}{2}}$.", r"Hence $\boxed{(3,\pi)}$."], [r"\frac{1}{2}", r"(3,\pi)"]),
}
"""As they stand in the sets; `research/real_sets.py` does the same with whole files."""


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solutions_verify_against_their_own_reference_only(name: str) -> None:
    texts, golds = SOLUTIONS[name]
    own = judge(texts, golds)
    assert all(r.correct for r in own), own
    others = golds[1:] + golds[:1]
    assert not any(r.correct for r in judge(texts, others))


def test_check_is_pure() -> None:
    assert check(r"\boxed{7}", "7") == check(r"\boxed{7}", "7") == (True, "ok", "7")
