"""The rules by which an answer is found in a text, each with answers that it must and must not pay."""

from time import process_time

import pytest
from hostile_answers import assert_linear

from lit_rlvr.answers import check
from lit_rlvr.answers.arithmetic import same_steps, sides
from lit_rlvr.answers.comma import has_decimal_comma
from lit_rlvr.answers.frames import single_backslashes
from lit_rlvr.answers.retracted import is_denied
from lit_rlvr.rewards.choice import Choice
from lit_rlvr.rewards.math import MathAnswer
from lit_rlvr.types import Completion, Sample


def judged(cases: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the cases (text, reference) that are right."""
    return [(text, reference) for text, reference in cases if check(text, reference)[0]]


TAKEN_BACK = [
    "{} is wrong.", "So {} cannot be right.", "{} can't be the answer.", "The answer is anything but {}.",
    "The answer is close to {}.", "The answer is {}+.", "The answer is {} or more.", "The answer is twice {}.",
    "The answer is nearly {}.", "The answer is {}. No, it is {}1.", "Answer: {}. Wait, actually {}1.",
    "The answer is {}... or rather {}1.", "The answer is {}, I mean {}1.", "The answer is {} (no, {}1).",
    "The answer is {}, but {}1 is better.", "The answer is not {} but {}1.", "\\boxed{{{}}}. Actually {}1.",
    "<answer>{}</answer>\nSorry, it should be {}1.", "Answer: {}\n\nScratch that, {}1.", "The answer is {}, maybe {}1.",
]  # fmt: skip


def test_a_number_that_its_text_takes_back_or_denies_is_no_answer() -> None:
    texts = [text.replace("{}", "7").replace("{{", "{").replace("}}", "}") for text in TAKEN_BACK]
    assert judged([(text, "7") for text in texts]) == []
    corrected = [text for text in texts if "71" in text and "maybe" not in text]
    assert len(corrected) == 10 and [text for text in corrected if not check(text, "71")[0]] == []


KEPT = [
    "The answer is 7, not 8.", "The answer is 7. Wait, let me check: 3 + 4 = 7. Yes.", "Not 8 but 7.",
    "The answer is 7, because 8 is wrong.", "Wait, actually the answer is 7.", "The answer is 7. I hope this helps!",
    "\\boxed{7}. Actually, that is 3 + 4.", "The answer is about 7.", "We need at least 7 buses.",
    "The answer is 7. Note that 8 would be too large.", "It adds up to 7.",
]  # fmt: skip


def test_words_around_a_number_do_not_always_take_it_back() -> None:
    assert judged([(text, "7") for text in KEPT]) == [(text, "7") for text in KEPT]


DENIED = [
    "Die Antwort ist nicht 7, sondern 8.", "La respuesta no es 7.", "La réponse n'est pas 7.", "La risposta non è 7.",
    "Não são 7.", "Это не 7.", "答案不是7", "Mindestens 7.", "Más de 7.", "Plus de 7 pommes.", "Più di 7.",
    "Mais de 7.", "Больше 7.", "不到7个。", "多于7", "Odpowiedź to nie 7.", "Svaret är inte 7.", "Det er ikke 7.",
    "Ei ole 7.", "Odpověď není 7.", "Nu este 7.", "Không phải 7 mà là 8.", "Bukan 7.", "ليس 7", "Minder dan 7.",
    "Co najmniej 7", "Mer än 7.", "Více než 7.", "أكثر من 7", "En az 7", "7 değil, 8.", "7ではなく8です。",
    "7가 아닙니다.", "उत्तर 7 नहीं है।", "7 से अधिक", "7以上", "7个以上", "7개 이상", "7未満", "少なくとも7",
]  # fmt: skip
STATED = [
    "Man braucht mindestens 7 Busse.", "Se necesitan al menos 7 autobuses.", "Il faut au moins 7 bus.",
    "Servono almeno 7 autobus.", "É preciso pelo menos 7 ônibus.", "Нужно не менее 7 автобусов.", "至少需要7辆车。",
    "Es sind 7 und nicht 8.", "Son 7, no 8.", "So there are 7, not 8.", "No quedan más, así que son 7.",
    "Er kauft 3 mehr als Anna, also 7.", "Zostało jej 7 jabłek, a nie 8.", "Còn lại 7 quả táo.", "7個", "7개",
    "남은 사과는 7개입니다.", "残りは7個です。",
]  # fmt: skip


def test_denials_and_bounds_are_read_in_the_languages_whose_answers_are() -> None:
    assert judged([(text, "7") for text in DENIED]) == []
    assert judged([(text, "7") for text in STATED]) == [(text, "7") for text in STATED]
    letters = ["Die Antwort ist nicht B.", "答案不是B", "Não é B.", "I would rule out B.", "All but B."]
    assert judged([(text, "B") for text in letters]) == []
    named = ["It's B.", "正解はBです。", "정답은 B입니다.", "I would rule out A, so B."]
    assert judged([(text, "B") for text in named]) == [(text, "B") for text in named]


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("10**6", "10^6", "106"),
        ("The answer is x**2 + 1.", "x^2 + 1", "x2 + 1"),
        ("2**(1/2)", "\\sqrt{2}", "1"),
        ("**10** apples", "10", "100"),
        ("The probability is 3/4, or 75%.", "3/4", "75"),
        ("There are 5 ways, or 10 if the order counts.", "5, 10", "5"),
        ("US$12.50", "\\$12.50", "\\$12.05"),
    ],
)
def test_powers_of_code_and_one_value_in_several_forms(text: str, right: str, wrong: str) -> None:
    assert check(text, right)[0] and not check(text, wrong)[0]


BOTH_OPTIONS = [
    "The answer is D or maybe A.",
    "The answer is D and also A.",
    "<answer>D, perhaps A</answer>",
    "A and D both fit.",
    "The answer is anything but D.",
    "D is wrong.",
    "The answer is D (or A).",
]
CORRECTED_OPTIONS = [
    "The answer is D. No, it is A.", "Answer: D. Wait, actually A.", "The answer is D? No, A.",
    "\\boxed{D}. Actually A.", "The answer is D, I mean A.",
    "The answer is D, although it is really A.", "Answer: D, but A is better.",
    "Answer: D\nSorry, it is A.", "A and D are possible, but A is better.",
]  # fmt: skip


@pytest.mark.parametrize("options", [(), ("a dog", "a cat", "a cow", "a pig")])
def test_options_are_taken_back_and_joined_by_the_same_rule(options: tuple[str, ...]) -> None:
    def value(text: str, answer: str) -> float:
        return Choice()(Completion(text, (), "stop"), Sample("1", "?", answer, options=options)).value

    assert [text for text in BOTH_OPTIONS + CORRECTED_OPTIONS if value(text, "D")] == []
    assert [text for text in CORRECTED_OPTIONS if not value(text, "A")] == []
    right = ["The answer is A because D is too small.", "Answer: A. D is too small.", "I would choose A over D."]
    assert [text for text in right if not value(text, "A")] == []


@pytest.mark.parametrize(
    ("right", "reference", "wrong"),
    [
        ("The correct answer is option C) Rs. 640.", "C", "The correct answer is option B) Rs. 640."),
        ("C)640", "C", "B)640"),
        ("\\boxed{Option C}", "C", "\\boxed{Option D}"),
        ("Hence, option C is correct.", "C", "Answer: A. red B. blue C. green"),
        ("Deshalb ist Antwort C richtig.\n\nBei Fragen gern melden.", "C", "Deshalb ist Antwort B richtig."),
        ("故选C。", "C", "故选D。"),
        ("Yes, the two lines are parallel.", "yes", "No, the two lines are not parallel."),
        ("Also: nein, sie ist nicht prim.\n\nIch hoffe, das hilft!", "nein", "Ja, sie ist prim."),
        ("The result is N) circle.", "N", "The result is M) circle."),
    ],
)  # fmt: skip
def test_letters_and_verdicts_are_read_by_their_place(right: str, reference: str, wrong: str) -> None:
    assert judged([(right, reference), (wrong, reference)]) == [(right, reference)]


@pytest.mark.parametrize(
    ("right", "reference", "wrong"),
    [
        ('FINAL ANSWER:\n"""\n24\n"""', "24", '"""\n24\n"""\nFINAL ANSWER:\n25'),
        ('```json\n{"reason": "9 and 15", "answer": "24"}\n```', "24", '{"answer": "9", "sum": "24"}'),
        ("[ANSWER]24[/ANSWER] as 9 + 15", "24", "[ANSWER]9[/ANSWER] 24"),
        ("<final_answer>24</final_answer> as 9 + 15", "24", "<final_answer>9</final_answer> 24"),
        ("Answer: 24 <eoa>", "24", "Answer: 9 <eoa>"),
        ("\\\\boxed{\\\\frac{3}{7}}", "\\frac{3}{7}", "\\\\boxed{\\\\frac{7}{3}}"),
        ("$-\\\\boxed{24}$", "-24", "$\\\\boxed{24}$"),
        ("#### Area\n\nThe area is **24**.", "24", "#### 9\n\nThe area is **24**."),
        ("The answer is 24.\n\nThe final answer is an approximation.", "24", "The answer is 24.\n\nThe answer is 9."),
        ("So it is $-\\boxed{24}$.", "-24", "So it is $\\boxed{24}$."),
        ("$\\frac{\\boxed{24}}{7}$", "24/7", "$\\frac{\\boxed{24}}{5}$"),
        ("$\\boxed{24}\\pi$", "24\\pi", "$\\boxed{24}$"),
    ],
)  # fmt: skip
def test_frames_and_what_stands_around_a_box(right: str, reference: str, wrong: str) -> None:
    assert judged([(right, reference), (wrong, reference)]) == [(right, reference)]


def test_single_backslashes_only_where_all_are_doubled() -> None:
    assert single_backslashes("\\\\frac{1}{2}") == "\\frac{1}{2}"
    matrix = "\\begin{pmatrix} 1 \\\\ \\frac{1}{2} \\end{pmatrix}"
    assert single_backslashes(matrix) == matrix and single_backslashes("x = 1 \\\\ y = 2") == "x = 1 \\\\ y = 2"


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("Answer: 12 hens lay 9 eggs a day.", "9", "12"),
        ("The answer is: Tom's age in 12 years is 40.", "40", "12"),
        ("Answer: 4 bags with 3 figs and 2 extra figs make 14 figs.", "14", "4"),
        ("Tom needs 40 points to reach the 6th grade.", "40", "6"),
        ("She paid `1,300` in total, which gives us 1,300.", "1300", "300"),
        ("Since there are 50 numbers, the chance is \\frac{9}{50}.", "\\frac{9}{50}", "50"),
        ("Dividing by $4$ gives $3x + 2x = 20$, so $5x = 20$ and $x = 4$.", "4", "20"),
        ("So the total is 600 divided by 2/3, which is 600 * 3/2 = 900.", "900", "600"),
        ("The share is 6/24 = 25%.", "25", "6"),
        ("The way is 30 s * 2 m/s = 60 m.", "60", "30"),
        ("Collecting: $x^2 + 2x - x = x^2 + x$.", "x^2+x", "x^2"),
        ("Hence the set is all numbers above 3, i.e. $(3, \\infty)$.", "(3,\\infty)", "3"),
        ("We meet on 9 May 2024.", "May 9, 2024", "2024"),
        ("5/25/1990", "May 25, 1990", "5"),
        ("We want $\\sin^2 18^\\circ + \\sin^2 72^\\circ.$", "", "1"),
        ("\\boxed{15 * 4 / 2}", "", "30"),
        ("Would you like to see step 3?", "", "3"),
        ("Tom is heading North.", "north", "south"),
    ],
)  # fmt: skip
def test_sentences_with_several_numbers(text: str, right: str, wrong: str) -> None:
    assert not right or check(text, right)[0]
    assert not check(text, wrong)[0]


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("Ana tiene 31 años.", "31", "3"),
        ("Es gibt 31 Möglichkeiten.", "31", "31 m"),
        ("Luc a 31 pièces.", "31", "31 pi"),
        ("Er hat 31 Gäste.", "31", "31 g"),
        ("El área es de $31$ cm².", "31", "2"),
        ("Tom sold 31 CDs.", "31", "3"),
        ("There are 31 VIP tickets.", "31", "3"),
        ("31 T-shirts", "31", "3"),
        ("Le prix est de 31,50 euros.", "31.5", "31"),
        ("31,50 $", "31.5", "50"),
        ("31,5 %", "31.5", "5"),
        ("Die Kosten betragen insgesamt 3.150 Euro.", "3150", "150"),
        ("The costs are 3.150 dollars.", "3.15", "3150"),
        ("El coste es 3.150,50.", "3150.5", "3150"),
        ("速度是每小时31.5千米。", "31.5", "5"),
        ("所以至少需要31辆车。", "31", "1"),
        ("x = 31\n\nIch hoffe, das hilft!", "31", "1"),
        ("x = 31\n\nSi tienes más preguntas, no dudes en decírmelo.", "31", "1"),
        ("The disk has 31 MiB.", "31", "31 MB"),
    ],
)  # fmt: skip
def test_numbers_in_other_languages_and_with_words_behind_them(text: str, right: str, wrong: str) -> None:
    assert check(text, right)[0] and not check(text, wrong)[0]


def test_the_language_tells_whether_a_comma_is_decimal() -> None:
    assert has_decimal_comma("Die Kosten sind 3,5.") and has_decimal_comma("Ответ: 3,5")
    assert not has_decimal_comma("The cost of it is 3,5.") and not has_decimal_comma("3,5")


@pytest.mark.parametrize(
    ("reference", "answer", "is_right"),
    [
        ("9 + 2 + 15 = 26", "\\boxed{9 + 2 + 15 = 26}", True),
        ("9 + 2 + 15 = 26", "The answer is 2 + 15 + 9 = 26.", True),
        ("9 + 2 + 15 = 26", "\\boxed{9 + 2 + 15}", True),
        ("9 + 2 + 15 = 26", "\\boxed{11 + 15 = 26}", False),
        ("9 + 2 + 15 = 26", "\\boxed{26}", False),
        ("9 + 2 + 15 = 26", "\\boxed{9 + 2 + 15 = 27}", False),
        ("8 / 2 * 3 = 12", "\\boxed{\\frac{8}{2} \\times 3 = 12}", True),
        ("8 - 3 = 5", "\\boxed{3 - 8 = 5}", False),
        ("3^2 = 9", "\\boxed{3^2 = 9}", True),
        ("3^2 = 9", "\\boxed{9^1 = 9}", False),
        ("9 + 2", "\\boxed{11}", True),
        ("9 + 2", "\\boxed{8 + 3 = 11}", False),
        ("26", "\\boxed{9 + 2 + 15 = 26}", True),
        ("2024-03-04", "\\boxed{2024-04-03}", False),
        ("7", "\\boxed{2x + 3y = 7}", False),
        ("7", "\\boxed{m + n = 7}", True),
    ],
)  # fmt: skip
def test_an_equation_between_numbers_is_compared_side_by_side(reference: str, answer: str, is_right: bool) -> None:
    assert check(answer, reference)[0] is is_right


def test_sides_keep_their_operations() -> None:
    assert sides("2*(3+4)") == sides("(4+3)*2") == [("*", "2", ("+", "3", "4"))]
    assert sides("8-3") != sides("3-8") and sides("x + 2") == sides("2 +") == sides("") == sides("(" * 99) == []
    assert same_steps(sides("3+4=7"), sides("7=4+3")) and not same_steps(sides("3+4=7"), sides("3+5=8"))


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("'Ab c'", "The function returns `'Ab c'`.", "<answer>'ab c'</answer>"),
        ("'Ab c'", '<answer>"Ab c"</answer>', "<answer>'Abc'</answer>"),
        ("[(5, 2), (1, 3)]", "The output is `[(5, 2), (1, 3)]`.", "The output is `[(1, 3), (5, 2)]`."),
        ("[7,0; 0, 7]", "$\\begin{bmatrix}7&0\\\\0&7\\end{bmatrix}$", "$\\begin{bmatrix}7&0\\\\0&8\\end{bmatrix}$"),
        ("(1)(3)(4)", "【答案】①③④", "【答案】①③"),
        ("61,300", "\\boxed{61300}", "\\boxed{300, 61}"),
        ("y=3x-2", "The tangent is $3x-y-2=0$.", "The tangent is $3x+y-2=0$."),
        ("x \\ne \\pm 3", "\\boxed{(-\\infty,-3)\\cup(-3,3)\\cup(3,\\infty)}", "\\boxed{(-\\infty,3)\\cup(3,\\infty)}"),
        ("Ann B Lee", "Ann B. Lee", "Ann C. Lee"),
        ("steam", "The answer is (C) steam.", "The answer is (C) ice."),
    ],
)  # fmt: skip
def test_references_in_other_notations(reference: str, right: str, wrong: str) -> None:
    assert judged([(right, reference), (wrong, reference)]) == [(right, reference)]


def test_ends_of_an_interval_are_not_rounded_to_the_references_places() -> None:
    assert not check("\\boxed{(0,1.4)}", "(0,1)", reference_precision=True)[0]
    assert check("\\boxed{2.3333}", "2.33", reference_precision=True)[0]


def test_a_second_opinion_is_asked_where_the_check_says_no_and_marks_the_verdict() -> None:
    pytest.importorskip("math_verify")
    reward = MathAnswer(second_opinion=True)
    texts = {"\\boxed{\\frac{dy}{dx}-2y=0}": "\\frac{dy}{dx}=2y", "\\boxed{5}": "5", "\\boxed{6}": "7", "": "8"}
    pairs = [(Completion(text, (), "stop"), Sample(gold, "?", gold)) for text, gold in texts.items()]
    assert not check(pairs[0][0].text, pairs[0][1].answer)[0], "else nothing is disputed"
    results = reward.score(pairs)
    assert [result.correct for result in results] == [True, True, False, False]
    assert [dict(result.criteria) for result in results] == [{"disputed": 1.0}, {}, {}, {}]
    assert reward.metrics == {"math_answer/disputed": [1.0, 0.0, 0.0, 0.0]}
    assert reward.explain(*pairs[0])[-1] == ("second opinion", "right, so disputed")
    assert [result.correct for result in MathAnswer().score(pairs)] == [False, True, False, False]


BEGUN_LIKE_MONTHS = [
    "18 marbles",
    "They sold 18 aprons.",
    "She reads 18 novels a year.",
    "There are 18 decks of cards.",
]


def test_words_that_begin_like_months_are_counted() -> None:
    assert judged([(text, "18") for text in BEGUN_LIKE_MONTHS]) == [(text, "18") for text in BEGUN_LIKE_MONTHS]
    dates = [("12 April", "April 12"), ("the 12th of April", "April 12"), ("Apr. 12", "April 12")]
    assert judged([*dates, ("12 aprons", "April 12"), ("12 August", "April 12")]) == dates


NUMBER_WORDS = [
    ("Two thirds of the students passed.", "2/3"),
    ("Three fourths of the pizza is left.", "3/4"),
    ("She walks two and a half miles.", "2.5"),
    ("twenty-two and a half", "22.5"),
    ("The answer is minus two and a half", "-2.5"),
    ("2 and a half", "2.5"),
    ("Four containers were left on the second day.", "4"),
]
NO_NUMBER_WORDS = [
    ("The ages of the two people are unknown.", "2"),
    ("It is not zero.", "0"),
    ("Three or four", "3"),
    ("The ratio is two to three", "3"),
    ("twenty-two and a half", "22"),
    ("one hundred and five and a half", "105"),
    ("Ten cannot be right.", "10"),
    ("Answer: ten is wrong", "10"),
    ("We can rule out five.", "5"),
    ("Let me try this in three steps.", "3"),
    ("The square root of nine", "9"),
    ("x is divisible by six", "6"),
]


def test_numbers_in_words_are_read_where_there_is_one() -> None:
    assert judged(NUMBER_WORDS) == NUMBER_WORDS
    assert judged(NO_NUMBER_WORDS) == []


OWN_CLAUSES = [
    ("12 ducks, 5 of which are white.", "12"),
    ("12, of which 4 are red", "12"),
    ("She has 12 apples, of which 4 are red.", "12"),
    ("The total is 12 of which 4 are red.", "12"),
    ("Of the 12 birds, 7 are left, 3 of which are blue.", "7"),
    ("7 were lost, of which 5 were found, so 2 are missing.", "2"),
    ("$7$ works, since $7+5=12$.", "7"),
    ("x=7 because 7+5=12", "7"),
    ("$x=-3$ is the only root, since $x=3$ does not satisfy the equation.", "-3"),
    ("The first term 2 is needed because the sum is 12.", "12"),
    ("We can divide by 2 because the total is 42", "42"),
    ("It rose 5% since 1990 to 80", "80"),
    ("He gives away 3 books and keeps 12 books.", "12"),
    ("He earns $1250 a year.", "1,250"),
    ("It moves at 10 m/s to the right.", "10 m/s"),
    ("The solution set is $\\{x : 2 \\leq x < 5\\}$.", "[2, 5)"),
    ("\\ce{H2SO4}", "H2SO4"),
    ("答案是5 以上", "5"),
]
OTHERS_CLAUSES = [
    ("12 ducks, 5 of which are white.", "5"),
    ("He has 5 because 7 were lost.", "7"),
    ("Option 3 fails since 4 works", "3"),
    ("The wrong value is 5 since 3 is right", "5"),
    ("The answer is 18, no wait, 19.", "18"),
    ("It is 2 to the power of 5.", "2"),
    ("The result is 10 to the 6th.", "10"),
]


def test_a_part_a_reason_and_a_rate_are_not_the_answer() -> None:
    assert judged(OWN_CLAUSES) == OWN_CLAUSES
    assert judged(OTHERS_CLAUSES) == []


def test_blanks_behind_an_answer_cost_no_time() -> None:
    began = process_time()
    assert not is_denied(" " * 20_000 + "x")
    assert process_time() - began < 2.0, "n * n would take minutes"


@pytest.mark.parametrize(
    "piece",
    [
        "\n",
        "\n ",
        "\n--",
        "\ncheck: a",
        "let's we ",
        "How many? ",
        "; since x, ",
        "the ",
        "edit ",
        " after ",
        " x from 2",
        " to do 3",
        "Fe2O3 + H2 -> ",
        "a, ",
        " that costs 3",
        "- $x = 1$\n",
        "Is it? No. ",
    ],
)
def test_a_text_costs_no_more_than_its_length(piece: str) -> None:
    assert_linear(lambda size: check(f"5{piece * size}x", "5"), 800)


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("She hit 7 out of 12.", "7/12", "12"),
        ("The chance is 7 in 12.", "7/12", "12"),
        ("She hit 18 out of 20.", "18", "20"),
        ("seven twelfths", "7/12", "7"),
        ("The train leaves at half past seven in the evening.", "7:30 PM", "7:30 AM"),
        ("a quarter to 4", "3:45", "4"),
        ("ten past four", "4:10", "10"),
        ("3 + 4j", "3+4i", "3-4i"),
        ("That makes 24!", "24", "25"),
        ("There are $4!$ orders.", "24", "4"),
        ("- 2\n- 3\n- 7", "2, 3, 7", "7"),
        ("- 3 + 4 = 7\n- 7 + 1 = 8", "8", "7, 8"),
        ("x is at most 4", "(-\\infty, 4]", "4"),
        ("All real numbers greater than 2.", "(2, \\infty)", "2"),
        ("0.25 liters of water", "250 mL", "250 L"),
        ("He pays \\$4.50 in total.", "4.5", "450"),
        ("Totalul este 56 de bile.", "56", "5"),
        ("Συνολικά έχει 56 βόλους.", "56", "5"),
        ("She picked 7 flowers because her mother likes 5 of them.", "7", "5"),
        ("3/4 can be written as 0.7500.", "0.75", "4"),
        ("It is Rome, Italy.", "Rome", "Italy"),
        ("Marie Curie (1867-1934)", "Marie Curie", "1867"),
        ("It is not prime, so no.", "No", "Yes"),
    ],
)  # fmt: skip
def test_shares_times_lists_and_bounds_in_words(text: str, right: str, wrong: str) -> None:
    assert judged([(text, right), (text, wrong)]) == [(text, right)]


def test_names_of_two_places_and_neither_of_two_numbers_are_no_answer() -> None:
    cases = [("Paris, Lyon", "Paris"), ("France, Italy", "France"), ("Not Rome, Italy.", "Rome")]
    cases += [("The answer is neither 36 nor 37.", "36")]
    assert judged(cases) == []


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("B, C and D can be excluded, which leaves A.", "A", "B"),
        ("A, B and D are wrong, so C.", "C", "A"),
        ("We can rule out A, C and D. That leaves B.", "B", "C"),
        ("C it is.", "C", "D"),
        ("Lösung: D", "D", "C"),
        ("The wrong answers are B and C. The correct answer is A.", "A", "B"),
    ],
)
def test_the_option_that_is_left_over_is_named(text: str, right: str, wrong: str) -> None:
    assert judged([(text, right), (text, wrong)]) == [(text, right)]
    assert judged([("Wrong answer: D", "D"), ("Неправильный ответ: D", "D"), ("A and B are wrong.", "A")]) == []


NAMED = [
    ("It is the city of Rome.", "Rome", "It is the mayor of Rome."),
    ("The answer is the Republic of Kenya.", "Kenya", "The answer is the president of Kenya."),
    ("That is the river Nile.", "Nile", "That is near Nile."),
    ("The 1st falls on a Monday.", "Monday", "The 1st does not fall on a Monday."),
    ("The answer is Curie, Marie.", "Marie Curie", "The answer is Curie, Pierre."),
    ("Newton, Isaac", "Isaac Newton", "Newton, Humphrey"),
    ("The product is sulfuric acid, H2SO4.", "sulfuric acid", "The product is nitric acid, HNO3."),
    ("The salt is sodium chloride, NaCl.", "NaCl", "The salt is potassium chloride, KCl."),
    ("Ja, denn 12 ist durch 3 teilbar.", "Yes", "Nein, denn 13 ist es nicht."),
    ("Нет, это неверно.", "No", "Да, это верно."),
    ("\\boxed{いいえ}", "no", "\\boxed{はい}"),
]


LAST_STEPS = [
    ("Probability = 3/5 = 0.6, or 60%.", "0.6", "Probability = 3/5 = 0.6, or 70%."),
    ("Total revenue: 40 tickets at $30 each \u2192 $1,200", "1200", "40 tickets at $30 each \u2192 $1,300"),
    ("3 x 4 => 12 apples", "12", "12 x 4 => 48 apples"),
    ("2H_2 + O_2 \u2192 2H_2O", "2H_2 + O_2 \u2192 2H_2O", "2H_2O \u2192 2H_2 + O_2"),
    (
        "\u6240\u6c42\u5207\u7ebf\u65b9\u7a0b\u4e3a $2x - y + 1 = 0$\u3002",
        "2x-y+1=0",
        "\u5207\u7ebf\u65b9\u7a0b\u4e3a $2x + y = 0$",
    ),
]


@pytest.mark.parametrize(("text", "reference", "wrong"), LAST_STEPS)
def test_what_comes_of_the_last_step_is_the_answer(text: str, reference: str, wrong: str) -> None:
    assert judged([(text, reference), (wrong, reference)]) == [(text, reference)]


@pytest.mark.parametrize(("text", "reference", "wrong"), NAMED)
def test_names_and_verdicts_in_other_forms(text: str, reference: str, wrong: str) -> None:
    assert judged([(text, reference), (wrong, reference)]) == [(text, reference)]


ROOTS = [
    ("So the side is 2 root 3.", "2\\sqrt{3}", "So the side is 2 root 5."),
    ("The diagonal is 5 times the square root of 2.", "5\\sqrt{2}", "It is the square root of 5 times 2."),
    ("It equals the cube root of 5.", "\\sqrt[3]{5}", "It equals the square root of 5."),
    ("The square root of 16 is 4.", "4", "It is the square root of 4."),
    ("Root 1 is 3 and root 2 is 5.", "5", "It is root 5."),
]


@pytest.mark.parametrize(("text", "reference", "wrong"), ROOTS)
def test_roots_in_words(text: str, reference: str, wrong: str) -> None:
    assert judged([(text, reference), (wrong, reference)]) == [(text, reference)]


def test_what_would_be_true_under_a_condition_that_does_not_hold_is_no_answer() -> None:
    texts = [
        "The answer would be 7 if all were red.",
        "It would be 7 if she had two.",
        "It would have been 7 if it was.",
    ]
    assert judged([(text, "7") for text in texts]) == []
    assert judged([("It would be 7 if all were red. They are not, so it is 6.", "6")])
    letters = ["C would be right if the ends were fixed.", "C would be right if they were fixed. They are not, so A."]
    assert judged([(text, "C") for text in letters]) == []
    kept = [(letters[1], "A"), ("It would be 7 if rounded.", "7"), ("The total is 7 if she had 3.", "7")]
    assert judged(kept) == kept


def test_midnight_counts_in_words_reasons_and_a_factorial_alone() -> None:
    right = [
        ("It ended at 00:30.", "12:30 AM"),
        ("No such number exists, so there are zero of them.", "0"),
        ("Therefore $n = 3$ is the only solution, since $2$ is even.", "3"),
        ("12!", "479001600"),
        ("That makes 24!", "24"),
    ]
    wrong = [
        ("It ended at 00:30.", "12:30 PM"),
        ("Therefore $n = 3$ is the only solution, since $2$ is even.", "2"),
        ("12!", "12"),
    ]
    assert judged(right) == right and judged(wrong) == []


def wrongly_judged(cases: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Return the (text, reference) of cases (text, right reference, wrong reference) that are judged wrongly."""
    missed = [(text, right) for text, right, _ in cases if not check(text, right).correct]
    paid = [(text, wrong) for text, _, wrong in cases if check(text, wrong).correct]
    return missed + paid


def test_a_question_before_its_answer_in_one_line_is_none() -> None:
    cases = [
        ("How many does she sell if 90 are ripe? She sells 45.", "45", "90"),
        ("Is 87 a prime number? No, 3 divides it.", "No", "Yes"),
        ("The question asks for half of 70. It is 35.", "35", "70"),
        ("After two tries I would say yes.", "yes", "no"),
    ]
    assert wrongly_judged(cases) == []
    assert judged([("The problem asks whether 35 is half of 70.", "35")]) == []


def test_a_check_behind_the_answer_is_none() -> None:
    cases = [
        ("So n = 8.\n\nCheck: 8 * 9 = 72.", "8", "72"),
        ("Also ist n = 8.\n\nProbe: 8 * 9 = 72.", "8", "72"),
        ("So n = 8.\n\n**Check**\n\n8 * 9 = 72", "8", "72"),
        ("We have 8 cars.\nLet's verify: 8 * 9 = 72.", "8", "72"),
        ("The check is worth 72.", "72", "8"),
    ]
    assert wrongly_judged(cases) == []


def test_a_reason_in_front_of_its_conclusion_leaves_the_conclusion() -> None:
    cases = [
        ("The roots are 6 and -6; because x < 0, we choose x = -6.", "-6", "6"),
        ("n is 4 or 9, and since n is odd, n = 9.", "9", "4"),
        ("I got 60. Correction: I lost a 5, so 65.", "65", "5"),
    ]
    assert wrongly_judged(cases) == []


def test_what_is_known_or_numbers_a_step_is_no_answer() -> None:
    cases = [
        ("He orders 15 more tiles to cover the 4 floors.", "15", "4"),
        ("1. Add them.\n2. Halve the sum, which is 7.", "7", "2"),
    ]
    assert wrongly_judged(cases) == []
    assert judged([("1. Add them.\n2. Halve it.\n3. Stop here.", "3"), ("The answer is 55 +", "55")]) == []


def test_units_in_a_sentence() -> None:
    cases = [
        ("The tour takes 2 hours and 15 minutes.", "135 minutes", "15 minutes"),
        ("She keeps 9 dollars back.", "$9", "9 cents"),
        ("The map costs 9 pounds in total.", "\u00a39", "$9"),
        ("The parcel weighs 9 pounds.", "9 lb", "9 kg"),
    ]
    assert wrongly_judged(cases) == []


def test_names_lists_of_words_and_functions_of_angles() -> None:
    cases = [
        ("Six days after a Friday is a Thursday.", "Thursday", "Friday"),
        ("The two metals are iron and zinc.", "zinc, iron", "zinc, tin"),
        ("The domain is all $x > 6$.", "(6, \\infty)", "[6, \\infty)"),
        ("Hence $\\sin\\theta = \\frac35$.", "3/5", "5/3"),
    ]
    assert wrongly_judged(cases) == []


def test_sums_and_signs_around_a_box_belong_to_it() -> None:
    cases = [("The value is -\\boxed{6}.", "-6", "6"), ("$n = \\boxed{6}$ + 1 spare", "6", "7")]
    assert wrongly_judged(cases) == []
    assert judged([("So $n = \\boxed{6}+1$.", "6")]) == []


def test_options_that_fail_together_or_are_taken_back() -> None:
    cases = [
        ("Both A and D fail, which leaves B.", "B", "A"),
        ("The answer is D? No: that is a bound, so A.", "A", "D"),
        ("Answer: D\n\nEdit: on reflection, A.", "A", "D"),
    ]
    assert wrongly_judged(cases) == []


SENTENCES = [
    ("The pump moves 40 litres within 8 seconds.", "40", "8"),
    ("She kept 15 cards after she gave away 9.", "15", "9"),
    ("Anna hat noch 45 Euro, nachdem sie 5 Hefte gekauft hat.", "45", "5"),
    ("Le quedan 45 euros después de comprar 5 libros.", "45", "5"),
    ("Il lui reste 45 euros après avoir acheté 5 livres.", "45", "5"),
    ("After 10 minutes the tank holds 25 litres.", "25", "10"),
    ("The price rose by 8 percent from 2019 to 2020.", "8%", "2020"),
    ("He needs 16 lemons to make 4 pies.", "16", "4"),
    ("Ela precisa de 16 ovos para fazer 4 bolos.", "16", "4"),
    ("The cook used 12 eggs for 5 cakes.", "12", "5"),
    ("She can buy 5 pens for 10 dollars.", "10", "5"),
    ("Leo keeps 15 cards, which is 6 more than Sam.", "15", "6"),
    ("Half of the 12 figs, which is $6$, are left.", "6", "12"),
    ("The bill comes to $27.50 (with $2.50 tax).", "27.50", "2.50"),
    ("Subtract 3 from 10 to get 7.", "7", "10"),
    ("You take 3 from 10 apples and 7 remain.", "7", "3"),
    ("We need to find how many of the 20 pupils sing. 5 pupils sing.", "5", "20"),
    ("They meet at noon.", "12:00 PM", "12:00 AM"),
    ("The shift ends at midnight.", "12:00 AM", "12:00 PM"),
    ("Five weeks before Monday is a Monday.", "Monday", "5"),
    ("3 hours after noon is 3 PM.", "3:00 PM", "3"),
    ("Hence $\\angle ABC = 45^\\circ$, as desired. $\\blacksquare$", "45", "54"),
    ("Thus n = 8. ∎", "8", "9"),
    ("Only A passes both tests.", "A", "B"),
    ("B is not correct. A is.", "A", "B"),
    ("Only C can be true.", "C", "A"),
    ("The winner is therefore Maria, ahead of Jack.", "Maria", "Jack"),
    ("Die Strecke ist also 3,5 km lang.", "3,5", "35"),
    ("No, the answer is not 12, it's 10.", "10", "12"),
    ("The sum is not 12; it is 10.", "10", "12"),
    ("The number of eggs is 7*3=21.\nThe number of eggs is 7*3=", "21", "3"),
    ("9\n\nExercise 2. What is 8 + 8?\nSolution: 16", "9", "16"),
    ("Problem 1. Add 4 and 5.\nSolution: 9", "9", "4"),
]


def test_a_sentence_states_one_of_its_numbers_and_the_others_are_asides() -> None:
    assert wrongly_judged(SENTENCES) == []
    assert judged([("The answer is 3 or maybe 5.", "5"), ("She can buy 5 pens for 10 dollars.", "5")]) == []


ASIDES = [
    ("Each child gets 5 figs, with 2 left over.", "5", "2"),
    ("Jeder bekommt 5 Feigen, mit 2 als Rest.", "5", "2"),
    ("So Peter is four years old, whereas his sister is 9.", "4", "9"),
    ("There are $\\binom{10}{3} = 120$ ways to choose 3 of them.", "120", "3"),
    ("It takes 1.5 hours to fill the 200 L tank.", "90 min", "200 L"),
    ("You take 4 from 9 figs and 5 remain.", "5", "4"),
    ("So two fifths of the 30 pupils walk to school.", "2/5", "30"),
    ("Half of the 12 figs, that is 6 figs, are left.", "6", "12"),
    ("Lena saved $45 by buying the set for $155.", "45", "155"),
    ("So the line has slope -1 and intercept 3: y = 3 - x.", "y=-x+3", "y=x-3"),
    ("The next bead must be blue, since the last was red.", "blue", "red"),
    ("Insgesamt sind es 18 Äpfel, von denen 6 rot sind.", "18", "6"),
    ("En total hay 18 manzanas, de las cuales 6 son rojas.", "18", "6"),
    ("Il y a 18 pommes, dont 6 rouges.", "18", "6"),
    ("Quindi servono 24 uova per le 8 torte.", "24", "8"),
    ("The bus covers 60 km in 2 hours.", "60", "2"),
    ("No doubt it is 5.", "5", "6"),
    ("B and C don't fit either, which means D.", "D", "C"),
    ("(A) is the best choice here; (C) misses the sign.", "A", "C"),
    ("The 3 kids want 5 figs.", "5", "3"),
]


def test_clauses_about_something_else_and_shares_in_words() -> None:
    assert wrongly_judged(ASIDES) == []
    assert judged([("I doubt that it is 5.", "5"), ("So the price fell, whereas Tom has 5.", "4")]) == []


def test_a_difference_is_no_value_next_to_one_in_several_languages() -> None:
    cases = [
        ("Elle a 28 ans, soit 4 ans de plus que Paul.", "28", "4"),
        ("Ella tiene 16 canicas, 5 más que Luis.", "16", "5"),
        ("Er hat 16 Murmeln, 5 mehr als Luis.", "16", "5"),
        ("Ha 16 biglie, 5 più di Luigi.", "16", "5"),
        ("We end up with 22 instead of 20 stickers.", "22", "20"),
        ("The exam takes place on Tuesday, two days after Sunday.", "Tuesday", "2"),
        ("She has 5 more than Sam.", "5", "6"),
        ("Ann: 3, Bob: 4", "Bob: 4, Ann: 3", "4"),
    ]
    assert wrongly_judged(cases) == []


OTHER_LANGUAGES = [
    ("La tarea dura 4 horas.", "240 minutes", "4 minutes"),
    ("Das Feld hat 30 Quadratmeter.", "30 m^2", "30 m"),
    ("Il faut 2 heures et 15 minutes.", "135 minutes", "15 minutes"),
    ("Der Fernseher kostet nun 1.480.", "1480", "1.48"),
    ("Die Masse ist 0.125 und nicht 0,5.", "0.125", "125"),
    ("El resultado es 6,5.", "6.5", "65"),
    ("Il y a 60 manières différentes de ranger les 5 disques.", "60", "5"),
    ("Es gibt 6 Möglichkeiten, 2 Hüte aus 4 zu wählen.", "6", "4"),
    ("9 von den 20 Gästen tanzen.", "9", "20"),
    ("Der Wert ist die 31.", "31", "13"),
    ("x = 4 und y = 7", "(4, 7)", "(7, 4)"),
    ("La ville la plus grande est Lyon.", "Lyon", "Nice"),
    ("La opción correcta es la D, porque la A es falsa.", "D", "A"),
    ("答案选C,因为A不对。", "C", "A"),
    ("Sie ist 3 Jahre älter als Tim, also 17 Jahre alt.", "17", "3"),
    ("Il lui reste 21 euros sur ses 60 euros.", "21", "60"),
    ("En total se guardaron 96 libros en 6 cajas.", "96", "6"),
    ("Le film commence à 20 h 15.", "20:15", "20:51"),
]


def test_units_numbers_and_verbs_of_other_languages() -> None:
    assert wrongly_judged(OTHER_LANGUAGES) == []


HANGING = [
    ("The second rod is 40 cm long, half the 80 of the first.", "40", "80"),
    ("It takes 25 minutes for the hose to fill the 90-litre barrel.", "25", "90"),
    ("They need 7 hours to paint the 30-metre fence with 3 brushes.", "7", "3"),
    ("Ben needs 8 euros more for the ball that costs 20.", "8", "20"),
    ("She'll need another 9 months to save the remaining $450.", "9", "450"),
    ("He pays $14 for the 3 mugs and 2 plates.", "14", "2"),
    ("It rose by 15 percent, from 40 to 46.", "15%", "46"),
    ("The rate fell by 3.5% between 2001 and 2011.", "3.5%", "2011"),
    ("Tim earns $31 an hour, compared with $28 before.", "31", "28"),
    ("The mode is 4, while the mean is 6.", "4", "6"),
    ("He walked 9 hours to reach an average of 12.", "9", "12"),
    ("Adding it all up, Eva has 60 stamps, 12 more than Jo.", "60", "12"),
    ("So it takes her 35 to do that.", "35", "53"),
    ("The chance is 1 in 8.", "1/8", "8"),
    ("So 12.5 percent of the eggs are broken.", "12.5%", "12.4%"),
    ("Of 30 tickets, 5 win with a sum of 9. That's 5/30.", "1/6", "9"),
    ("His mark has to be at least 64.", "64", "46"),
    ("It would be 30 if all were here, but two are ill, so it's 28.", "28", "30"),
    ("The answer is 9. Oh, I forgot to halve it, so 4.5.", "4.5", "9"),
    ("It is 5/11, or roughly 0.455.", "5/11", "5/12"),
    ("Total = $900 + $450 = $1,350", "1350", "350"),
    ("A: 14 A: 14 A: 14 A:", "14", "141414"),
    ("The numbers are\n- $x_1 = -6$\n- $x_2 = 2$", "-6, 2", "2"),
    ("The roots are:\n\n* 4\n* 9\n\nAsk me more!", "4, 9", "4"),
    ("You need half a litre of cream.", "500 mL", "2 L"),
    ("It lasts two and a half hours.", "150 minutes", "2 hours"),
    ("We meet at 8 o'clock.", "8:00", "9:00"),
    ("In all, 96 books were packed into 6 boxes.", "96", "6"),
    ("The fee was raised from 40 to 55.", "55", "40"),
    ("Her part is 3/4 of $80, or $60.", "60", "80"),
    ("I'd expect about 150 heads in 300 flips.", "150", "300"),
    ("The odds that neither of them wins is 0.45.", "0.45", "0.55"),
    ("He must save at least 90 euros.", "90", "9"),
    ("It lasts 21 days, 8 of them free.", "21", "8"),
    ("One in five eggs is bad.", "1/5", "5"),
    ("It is about 2.65, which is $\\sqrt{7}$.", "\\sqrt{7}", "\\sqrt{5}"),
    ("We end up with $2x + 7y = 11$.", "2x + 7y = 11", "11"),
]


def test_numbers_that_hang_on_another_are_no_answer() -> None:
    assert wrongly_judged(HANGING) == []


STATED_NAMES = [
    ("Ottawa is the capital of Canada.", "Ottawa", "Canada"),
    ("Bern, not Basel, is Switzerland's capital.", "Bern", "Basel"),
    ("Which metal? Copper, which is a good conductor.", "copper", "zinc"),
    ("It was the chemist Marie Curie who found it.", "Marie Curie", "Pierre"),
    ("A group of crows is known as a murder.", "murder", "group"),
    ("It was painted by Frida Kahlo.", "Frida Kahlo", "Kahlo"),
    ("Borges wrote it.", "Borges", "Cortázar"),
    ("This is an example of diffusion.", "diffusion", "osmosis"),
    ("The pigments are cyan, magenta, and yellow.", "magenta, cyan, yellow", "cyan"),
    ("If it is Sunday, in 2 days it will be **Tuesday**.", "Tuesday", "Sunday"),
    ("So the method returns `None`.", "None", "0"),
    ("The argument is not valid.", "invalid", "valid"),
    ("Right! The statement is false because 9 is odd.", "False", "True"),
    ("No, it can't be.\n\nFor example, take n = 4.", "No", "Yes"),
    ("9 is odd, so the claim does not hold. No.", "No", "Yes"),
    ("Table salt is sodium chloride (NaCl).", "NaCl", "KCl"),
    ("It burns as CH4 + 2O2 → CO2 + 2H2O.", "CH_4 + 2O_2 \\rightarrow CO_2 + 2H_2O", "CH_4 + O_2 \\rightarrow CO_2"),
    ("\\boxed{\\mathrm{Ca_3(PO_4)_2}}", "Ca3(PO4)2", "Ca2(PO4)3"),
    ("The ion is Mg²⁺.", "Mg^{2+}", "Mg^{+}"),
    ("A) is wrong, and so is (B), which leaves (C).", "C", "A"),
    ("Only statement (b) holds, so (b) is the answer.", "B", "A"),
]


def test_names_and_formulas_that_a_sentence_states() -> None:
    assert wrongly_judged(STATED_NAMES) == []
    joined = [
        ("It is Paris or **Lyon**.", "Lyon"),
        ("The oxide is FeO or Fe2O3.", "Fe2O3"),
        ("It is not **Rome**.", "Rome"),
    ]
    assert judged(joined) == []


READ_FORMULAS = [
    ("So it is the horizontal line $y=7$.", "y = 7", "x = 7"),
    ("$\\int 3x^2\\,dx = x^3 + C$", "x^3 + C", "3x^2"),
    ("The normal is $\\mathbf{i} - 4\\mathbf{j} + 2\\mathbf{k}$.", "(1, -4, 2)", "(1, 4, 2)"),
    ("It is $\\frac{1}{5}(3, -4)$.", "(3/5, -4/5)", "(3, -4)"),
    ("The vector is <4, 0, -1>.", "(4, 0, -1)", "(4, 0, 1)"),
    ("So $30_{10} = 36_8$.", "36_8", "30_8"),
    ("31 in base 16 is 1F.", "1F_{16}", "F1_{16}"),
    ("It holds for x between 1 and 6, inclusive.", "[1, 6]", "(1, 6)"),
    ("x is greater than 1 and less than or equal to 6.", "(1, 6]", "[1, 6)"),
    ("Thus $x$ must be at most 9.", "x \\le 9", "x < 9"),
    ("{t | 0<t<2}", "(0, 2)", "[0, 2]"),
    ("The ratio is 5 : 2.", "5:2", "2:5"),
    ("The circle has equation $x^2+y^2-2x=0$.", "(x-1)^2+y^2=1", "x^2+y^2=1"),
    ("So he has 9 + 5 = 14 caps.", "5 + 9 = 14", "10 + 4 = 14"),
    ("\\boxed{x<-4,\\ x>1}", "(-\\infty,-4)\\cup(1,\\infty)", "(-4,1)"),
    ("\\boxed{2<x<4 \\text{ or } x=9}", "(2,4)\\cup\\{9\\}", "(2,4)"),
    ("\\boxed{x\\neq\\pm3}", "x\\ne3,-3", "x\\ne3"),
    ("\\boxed{\\text{(ii) and (iv)}}", "(ii), (iv)", "(ii), (iii)"),
    ("\\boxed{\\begin{vmatrix}2&1\\\\5&3\\end{vmatrix}=1}", "1", "2"),
    ("\\boxed{\\frac{dy}{dx}=3x}", "3x", "x"),
    ("The code is 0x2A.", "42", "24"),
]


def test_formulas_in_sentences() -> None:
    assert wrongly_judged(READ_FORMULAS) == []
