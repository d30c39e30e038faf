"""The check of one completion's final answer with math-verify, which runs in a reward worker.

The worker's limits stop checks that take too long, so math-verify's own time limits (signal.alarm) are off.
math-verify swallows sympy's exceptions on odd answers and calls them wrong. This is intended: an answer must not
escape the loss by breaking the checker.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

from lit_rlvr.rewards import arithmetic
from lit_rlvr.rewards.answers import TAIL_CHARACTERS, last_boxed, last_phrase, normalise

_NUMBER_GROUPS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:\\[,; !]|\{,\}|,\\!| )\d{3})+(?!\d)")
_DEGREES = re.compile(r"\s*(?:\u00b0|\\degree(?![A-Za-z]))")
_UNIT_WORDS = re.compile(r"(?<=[\d}])(?:\s+[A-Za-z]{3,})+$|(?<=\d)\s*[€£¥]$")
_SCIENTIFIC = re.compile(r"([-+]?\d*\.?\d+)[eE]([-+]?\d{1,3})")
_UNEVALUATED = re.compile(
    r"(?=.*\d\)?\s*(?:[-+*\u00d7\u00f7]|\\times|\\cdot|\\div))(?:[-\d\s.,()+*\u00d7\u00f7]|\\times|\\cdot|\\div)+"
)


def check_math(text: str, answer: str, boxed_only: bool = False, decimals: int = 6) -> tuple[bool, str, str]:
    """Compare the final answer in `text` with the reference `answer`.

    The final answer is the content of the last `\\boxed{}` after the last `</think>`. Without a box, the check looks
    after the last `####`, or else in the last 2,000 characters. There it takes the phrase after "answer is" or on the
    last line if that is the reference word for word or a number like 1e3, and otherwise the last number, fraction or
    LaTeX (preferably after the word "answer"). An unevaluated sum or product ("3 + 4") restates the question and is
    not an answer; `3 + 4 = 7` answers 7. A reference that does not parse is compared as normalised text. Numbers are
    equal if they agree to `decimals` places.

    Returns:
        (correct, "ok" or, if there is no answer, "parse_fail", the extracted answer).
    """
    text = text.rpartition("</think>")[2].replace("\N{MINUS SIGN}", "-")
    gold_text, gold = _reference(answer)
    found = last_boxed(text)
    if found is not None:
        readings = _readings(found)
    elif boxed_only:
        return False, "parse_fail", ""
    else:
        tail = text.rpartition("####")[2][-TAIL_CHARACTERS:]
        phrase = last_phrase(tail)
        if _same_text(phrase, gold_text):
            found, readings = phrase, []
        elif _SCIENTIFIC.fullmatch(phrase):
            found, readings = phrase, _readings(phrase)
        else:
            found, readings = _last_expression(tail)
    if _same_text(found, gold_text):
        return True, "ok", found
    if not readings or _UNEVALUATED.fullmatch(found):
        return False, "parse_fail", found
    equal = verify(gold, readings, float_rounding=decimals, allow_set_relation_comp=True, timeout_seconds=None)
    return equal, "ok", found


def is_readable(answer: str) -> bool:
    """Return True if the reference parses as mathematics."""
    return bool(_reference(answer)[1])


@lru_cache(maxsize=4096)
def _reference(answer: str) -> tuple[str, list[Any]]:
    boxed = last_boxed(answer)
    text = (answer if boxed is None else boxed).strip().replace("\N{MINUS SIGN}", "-")
    return text, _readings(text)


def _readings(latex: str) -> list[Any]:
    """Parse LaTeX to sympy objects, one for each of its possible meanings.

    They are the text as written, the text without words after it (18 dollars) and, for scientific notation, the
    number (2e-1 is 0.2 as well as 2e minus 1).
    """
    latex = _NUMBER_GROUPS.sub(lambda match: re.sub(r"\D", "", match[0]), latex)
    latex = _DEGREES.sub(r"^\\circ", latex)
    plain = _UNIT_WORDS.sub("", latex)
    power = _SCIENTIFIC.fullmatch(plain.strip())
    forms = dict.fromkeys([latex, plain, *([f"{power[1]} \\times 10^{{{int(power[2])}}}"] if power else [])])
    return [reading for form in forms for reading in _parse(f"$\\boxed{{{form}}}$", "no_fallback")]


def _last_expression(text: str) -> tuple[str, list[Any]]:
    """Return the last expression in plain text and its parsed form; ("", []) if there is none."""
    parsed = _parse(text, "first_match")
    return ("", []) if not parsed or isinstance(parsed[0], str) else (str(parsed[-1]), parsed[:1])


def _same_text(found: str, gold: str) -> bool:
    return bool(normalise(found)) and normalise(found) == normalise(gold)


def _parse(text: str, fallback: str) -> list[Any]:
    return parse(text, fallback_mode=fallback, parsing_timeout=None)


arithmetic.replace_sympy_parser()
check_math("\\boxed{1}", "2")  # compiles the patterns, which must not count in the first answer's time
check_math("1", "2")
