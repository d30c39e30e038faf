"""The check of one completion's final answer against the reference, which runs in a reward worker.

find -> normalise characters -> parse by type -> compare by type: see `lit_rlvr.answers`. The parser of LaTeX is
Math-Verify's (latex2sympy2_extended). What Math-Verify does around it is replaced, because it reads words as products
of letters, drops units and labels, and compares small numbers by absolute error. The worker's limits stop checks that
take too long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from string import ascii_uppercase
from typing import Any

from lit_rlvr.answers import Verdict
from lit_rlvr.answers.arithmetic import has_steps, same_steps, sides
from lit_rlvr.answers.choices import named_options
from lit_rlvr.answers.comma import (
    has_decimal_comma,
    has_dotted_thousands,
    has_only_decimal_commas,
    is_decimal_comma,
    pointed_number,
    with_decimal_point,
)
from lit_rlvr.answers.compare import Rules, same
from lit_rlvr.answers.find import Found, answer_region, find_answer, last_boxed
from lit_rlvr.answers.latex import clean
from lit_rlvr.answers.parse import parse
from lit_rlvr.answers.prose import candidates, in_prose, last_step
from lit_rlvr.answers.roots import with_roots
from lit_rlvr.answers.spans import has_value
from lit_rlvr.answers.values import Labelled, Parts, Reading, Series, Text, describe, text_keys

_UNEVALUATED = re.compile(
    r"(?=.*\d\)?\s*(?:[-+*\u00d7\u00f7]|\\times|\\cdot|\\div))(?:[-\d\s.,()+*/\u00d7\u00f7]|\\times|\\cdot|\\div)+"
)
_SCIENTIFIC = re.compile(
    r".*(?:\*|\u00d7|\\times|\\cdot)\s*10\s*(?:\^.*|\*\*.*|[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+)"
)

_VERDICT_FIRST = re.compile(r"(?i)(?:\\text\s*\{)?\s*(?:yes|no|true|false)\s*[,.;:]")
"""Before a reason: "Yes, because 3 > 2"."""


def check(
    text: str,
    answer: str | Sequence[str],
    boxed_only: bool = False,
    decimals: int = 6,
    reference_precision: bool = False,
    open_thoughts: bool = False,
) -> Verdict:
    """Compare the final answer in `text` with the reference `answer`, or with several, of which one suffices.

    `find_answer` says which answer is the final one. In prose it is the first part of the phrase that is a value ("7,
    because ..."). An unevaluated sum or product ("3 + 4") restates the question and is not an answer; `3 + 4 = 7`
    answers 7.

    Nothing bounds the time that it takes: a hostile text may take seconds. Rewards run it in workers under limits.

    Args:
        text: the completion.
        answer: the reference, or several.
        boxed_only: see `find_answer`.
        decimals: see `Rules`.
        reference_precision: see `Rules`.
        open_thoughts: see `find_answer`.
    """
    references = (answer,) if isinstance(answer, str) else tuple(answer)
    text = with_roots(text)
    found = find_answer(text, boxed_only, open_thoughts)
    rules = Rules(decimals, reference_precision)
    verdicts = []
    values = [reference for reference in references if not _option_letter(reference)]
    for reference in references:
        letter = _option_letter(reference)
        if letter:
            verdicts.append(_judge_letter(text, letter, found, boxed_only))
        else:
            verdicts.append(_judge(found, reference, rules))
    if has_only_decimal_commas(text) and not any(map(has_dotted_thousands, values)):
        verdicts = [_without_misread(verdict) for verdict in verdicts]
    if not any(verdict.correct for verdict in verdicts) and has_decimal_comma(text):
        verdicts += _judge_pointed(found, values, rules)
    return next((verdict for verdict in verdicts if verdict.correct), verdicts[0])


def _without_misread(verdict: Verdict) -> Verdict:
    """Return a verdict that pays no number with dotted thousands: "1.250" is no 1.25."""
    return verdict._replace(correct=verdict.correct and not has_dotted_thousands(verdict.answer))


def _judge_pointed(found: Found, references: Sequence[str], rules: Rules) -> list[Verdict]:
    """Judge an answer whose numbers have decimal commas and dotted thousands."""
    pointed = with_decimal_point(found)
    verdicts = []
    if pointed != found:
        verdicts = [_judge(pointed, reference, rules) for reference in references]
    for reference in filter(is_decimal_comma, references):
        verdicts.append(_judge(pointed, pointed_number(reference), rules))
    return verdicts


_LETTER = re.compile(r"(?:(?i:option|choice|answer)\s*)?\(?([A-Z])\)?[.):]?|(?i:option|choice)\s*\(?([a-z])\)?")


def _option_letter(answer: str) -> str:
    """Return the letter of a reference that is an option of a multiple-choice question: "B", "(B)", "Option B"."""
    match = _LETTER.fullmatch(clean(_bare_reference(answer)))
    if match:
        return (match[1] or match[2]).upper()
    return ""


def _judge_letter(text: str, letter: str, found: Found, boxed_only: bool) -> Verdict:
    """Judge an answer to a multiple-choice question whose options are not known."""
    named = named_options(text, boxed_only, (), True, ascii_uppercase)
    return Verdict(ascii_uppercase.index(letter) in named, _status(bool(named)), found.text)


def _status(is_read: bool) -> str:
    if is_read:
        return "ok"
    return "parse_fail"


_STRING = re.compile(r"""(['"])([^'"]*)\1""")


def _judge_string(reference: str, found: Found) -> Verdict:
    """Compare with a string of code, letter by letter: the last string of the answer, or all of it."""
    strings = [match[2] for match in _STRING.finditer(found.text)]
    if strings:
        given = strings[-1]
    elif found.where in ("phrase", "line"):
        given = found.text.strip().removesuffix(".")
    else:
        given = found.text.strip()
    return Verdict(given == reference, _status(bool(found.text)), given)


def _judge(found: Found, reference: str, rules: Rules) -> Verdict:
    """Judge what was found by a reference that is no option."""
    bare = _bare_reference(reference)
    golds = _reference(reference)
    string = _STRING.fullmatch(bare)
    if string:
        return _judge_string(string[2], found)
    equation = _judge_equation(bare, golds, found)
    if equation is not None:
        return equation
    if found.boxes:
        return _judge_boxes(found, reference, rules)
    for candidate in candidates(found, text_keys(golds)):
        verdict = _judge_candidate(candidate, found, bare, golds, rules)
        if verdict is not None:
            return verdict
    if found.otherwise is not None and _is_note(found.text) and has_value(golds):
        return _judge(found.otherwise, reference, rules)
    are_words = all(isinstance(value, Text) for value in golds)
    is_read = found.where in ("box", "tag") and bool(found.text) and are_words
    return Verdict(False, _status(is_read), found.text)


def _judge_equation(bare: str, golds: Sequence[Reading], found: Found) -> Verdict | None:
    """Judge an answer by a reference that is an equation between numbers, or an unevaluated one; None for others."""
    if not re.search(r"\d", bare) or any(isinstance(value, Parts) for value in golds):
        return None
    steps = sides(bare)
    is_equation = len(steps) > 1
    if not has_steps(steps) or not (is_equation or is_restated(bare)):
        return None
    stated = next(filter(has_steps, map(sides, candidates(found, text_keys(golds)))), [])
    if stated or is_equation:
        return Verdict(bool(stated) and same_steps(steps, stated), "ok", found.text)
    return None


def _judge_boxes(found: Found, reference: str, rules: Rules) -> Verdict:
    """Judge several boxes: the last one, or all of them if "or" joins them; else together."""
    verdicts = [_judge(Found(text, "box"), reference, rules) for text in found.boxes]
    counted = verdicts[-1:]
    if found.joiner == "or":
        counted = verdicts
    if all(verdict.correct for verdict in counted):
        return verdicts[-1]
    together = _judge(Found(", ".join(dict.fromkeys(found.boxes)), "box"), reference, rules)
    if together.correct:
        return together
    return verdicts[-1]._replace(correct=False)


def _judge_candidate(candidate: str, found: Found, bare: str, golds: Sequence[Reading], rules: Rules) -> Verdict | None:
    """Judge one part of what was found; None = the next part may be the answer."""
    values = parse(candidate)
    if not text_keys(golds).isdisjoint(text_keys(values)):
        return Verdict(True, "ok", candidate)
    has_parts = any(isinstance(value, Parts) for value in values)
    if is_restated(candidate) and not has_parts and not is_restated(bare):
        return Verdict(False, "parse_fail", candidate)
    if all(isinstance(value, Text) for value in values):
        return None
    if same(golds, [*values, *_in_several_forms(values)], rules):
        return Verdict(True, "ok", candidate)
    ends_in_step = found.where == "box" and last_step(candidate)
    is_derivation = candidate == found.text and bool(in_prose(candidate) or ends_in_step)
    is_sentence = found.where in ("line", "phrase") and not has_value(values)
    if is_derivation or is_sentence or _VERDICT_FIRST.match(candidate):
        return None
    return Verdict(False, "ok", candidate)


_NO_VALUE = re.compile(
    r"(?i)\b(?:not|n't|no|none|unknown|undefined|infinite(?:ly)?|impossible|undetermined|wrong|incorrect|cannot|never|dne|zero)\b"
)


def _is_note(text: str) -> bool:
    """Return True for words that say nothing of an answer: a heading, "an approximation"."""
    return not re.search(r"[\d\\$]", text) and not _NO_VALUE.search(text)


def second_opinion(
    text: str,
    answer: str | Sequence[str],
    boxed_only: bool = False,
    decimals: int = 6,
    reference_precision: bool = False,
    open_thoughts: bool = False,
) -> bool:
    """Return True if Math-Verify calls the final answer right; takes the arguments of `check`.

    It reads the part of the completion in which an answer may be, and a box alone if there is one. Its own limits of
    time are off, because the worker has some. What it cannot read is not right.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify  # an optional package

    found_answer = find_answer(text, boxed_only, open_thoughts)
    if boxed_only or found_answer.where == "box":
        text = f"\\boxed{{{found_answer.text}}}"
    else:
        text = answer_region(text, boxed_only, open_thoughts)
    forms = (LatexExtractionConfig(), ExprExtractionConfig())
    if found_answer.text:
        given = parse(text, forms, parsing_timeout=None)
    else:
        given = []
    references = (answer,) if isinstance(answer, str) else tuple(answer)
    for reference in references:
        gold = parse(f"${_bare_reference(reference).strip('$')}$", forms, parsing_timeout=None)
        if gold and given and verify(gold, given, float_rounding=decimals, timeout_seconds=None):
            return True
    return False


def is_restated(text: str) -> bool:
    """Return True for an unevaluated sum or product of numbers, which is not an answer."""
    return _UNEVALUATED.fullmatch(text.strip(" $")) is not None and _SCIENTIFIC.fullmatch(text) is None


def explain_check(text: str, answer: str | Sequence[str], *options: Any) -> list[tuple[str, str]]:
    """Return (stage, result) of each stage of `check` with the same arguments."""
    verdict = check(text, answer, *options)
    references = (answer,) if isinstance(answer, str) else tuple(answer)
    found = find_answer(text, *options[:1], *options[3:])
    stages = [("found", "no answer")]
    if found.text:
        stages = [("found", f"{found.text!r} ({_PLACES[found.where]})")]
    if verdict.answer != found.text:
        stages.append(("taken of it", repr(verdict.answer)))
    stages.append(("characters", repr(clean(verdict.answer))))
    stages.append(("the answer is", _listed(parse(verdict.answer))))
    for reference in references:
        stages.append(("the reference is", f"{reference!r}: {_listed(_reference(reference))}"))
    if verdict.status != "ok" and not verdict.answer:
        compared = "nothing to compare"
    elif verdict.correct:
        compared = "equal"
    elif is_restated(verdict.answer):
        compared = "an unevaluated sum or product"
    else:
        compared = "not equal"
    return [*stages, ("compared", compared), ("status", verdict.status)]


_PLACES = {
    "box": "in a box",
    "tag": "in a tag",
    "hash": "behind ####",
    "phrase": 'behind "answer"',
    "line": "last line",
}


def _listed(values: Sequence[Reading]) -> str:
    """Describe readings in a line, text last."""
    ordered = sorted(values, key=lambda value: isinstance(value, Text))
    return "; ".join(dict.fromkeys(map(describe, ordered))) or "nothing"


def is_readable(answer: str) -> bool:
    """Return True if the reference parses as mathematics."""
    return any(not isinstance(value, Text) for value in _reference(answer))


def _bare_reference(answer: str) -> str:
    """Return a reference without the tag, box or mark around it."""
    inside = re.fullmatch(r"(?s)\s*<answer>(.*?)</answer>\s*", answer)
    answer = inside[1] if inside else answer
    boxed = last_boxed(answer)
    return (answer.rpartition("####")[2] if boxed is None else boxed).strip()


@lru_cache(maxsize=4096)
def _reference(answer: str) -> tuple[Reading, ...]:
    bare = _bare_reference(answer)
    accepted = re.fullmatch(r"(.*\S)\s*\((?:both|either|all|any)\b[^()]*\)\.?", bare)
    if accepted:
        forms = re.split(r"\s*(?:,|\bor\b|\band\b)\s*", accepted[1])
    else:
        forms = re.split(r"\s+OR\s+|\s*\\?#\s*\\?#\s*", bare)
    values = tuple(value for form in forms for value in parse(form.strip(" $") if len(forms) > 1 else form))
    verdict = re.fullmatch(r"(?i)yes[.,;:]\s*(\$.*\$)\.?", bare)
    if verdict:
        values += parse(verdict[1])
    return (*values, *_in_several_forms(values))


def _in_several_forms(values: Sequence[Reading]) -> Sequence[Reading]:
    """Return the readings of the one value that a list gives in several forms, "3/4, or 75%", "P = 3/4, or 75%"."""
    items: tuple[tuple[Reading, ...], ...] = ()
    for value in values:
        if isinstance(value, Series) and not value.brackets:
            items = value.items
            break
        if isinstance(value, Labelled) and len(value.values) == 1:
            (items,) = value.values.values()
    if len(items) < 2:
        return ()
    first, *others = items
    if all(same(first, item, Rules()) for item in others):
        return first
    rounded = Rules(reference_places=True)
    are_rounded = all(same(item, first, rounded) or same(first, item, rounded) for item in others)
    if are_rounded:
        return list(chain.from_iterable(items))
    return ()


check("\\boxed{\\frac{x}{2}}", "0.5x")  # fills caches, which must not count in the first answer's time
check("The answer is 1.", "2")
