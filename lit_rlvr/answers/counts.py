"""Numbers in words in prose."""

from __future__ import annotations

import re
from collections.abc import Set as Collection

from lit_rlvr.answers.retracted import GOES_ON, TO, is_denied, is_denied_before
from lit_rlvr.answers.units import read_numeral, read_unit


def with_spelt_unit(text: str, count: str) -> str:
    """Return a number in words with the unit that stands behind it: "half a litre"."""
    _, _, behind = text.partition(count)
    unit = re.match(r"\s+(?:of\s+)?(?:an?\s+)?([A-Za-z]{3,})", behind)
    if unit and read_unit(unit[1]) is not None:
        return f"{count}{unit[0]}"
    return count


def are_names(keys: Collection[str]) -> bool:
    """Return True if the forms of a reference are words and none is a number in words."""
    return bool(keys) and all(key.isalpha() and read_numeral(key) is None for key in keys)


_OR_TO = re.compile(rf"\s+(?:or|{TO})\b")
"""Behind a number that is one of several."""
_AND_A_PART = re.compile(r"\s+and\s+(?:an?|one)\s+(?:half|third|quarter|fourth)")
"""Behind a number in words that is not all of it."""


def leading_count(text: str) -> str:
    """Return the number in words that a text begins with; "" if it begins with something else, or with "one of"."""
    words = re.match(r"(?:exactly |only |a total of )?([A-Za-z]+(?:[- ][A-Za-z]+){0,7})(?![-\w])(?! of\b)", text)
    if words is None:
        return ""
    pieces = re.split(r"(-| (?!of\b))", words[1])
    for length in range(len(pieces), 0, -2):
        run = "".join(pieces[:length])
        number = run.removesuffix(" of")
        value = read_numeral(number)
        if pieces[length : length + 1] == ["-"] or number.lower() in ("a", "an") or value is None:
            continue
        behind = text[words.start(1) + len(run) :]
        if _OR_TO.match(behind) or _AND_A_PART.match(behind):
            return ""
        # "one of" begins a part, "two thirds of" and "zero of them." do not
        if number == run or value.denominator > 1 or re.fullmatch(r" (?:them|these|those)\W*", behind):
            return number
    return ""


_FROM_ANOTHER_TIME = r"\s+(?:[a-z]+\s+)?(?:minute|hour|day|night|week|month|year)s?\s+(?:after|before|from|past)\b"
OFFSET = re.compile(rf"(?i){_FROM_ANOTHER_TIME}")
"""Behind a number that says how far a time is from another one: "six days after Friday"."""
COUNTED_FROM = re.compile(rf",\s+(?=[^\W\d_]+{_FROM_ANOTHER_TIME})")
"""Before what says how far a time is from another one, behind it: "on Tuesday, two days after Sunday"."""
_ASIDE = re.compile(
    r"(?i)\b(?:the|these|those|both|all|any|my|your|his|her|its|our|their|root of|multiple of|factor of|by|past"
    r"|exceeds?|to|in|into|of|(?<!calls )for|from|need|consider|reject|exclude|rule out|discard|at|on)\s+$"
)
"""Before a number in words that is no answer: it is known, or part of something else."""


def only_count(text: str) -> str:
    """Return the number in words that a text begins with, or else the only one in its first 300 characters.

    "One" and "half" count only at the beginning. A number that is denied or one of several is none.
    """
    counts = []
    end = 0
    for word in re.finditer(r"(?<![-\w])[A-Za-z]+", text[:300]):
        if word.start() < end:
            continue
        rest = text[word.start() : word.start() + 120]
        if read_numeral(word[0]) is not None and re.match(r"[A-Za-z-]+\s+(?:or|to)\s+[A-Za-z]", rest):
            return ""
        count = leading_count(rest)
        before = text[: word.start()]
        has_unit = bool(count) and with_spelt_unit(rest, count) != count
        is_word = before and count.lower() in ("one", "half", "second")
        if not count or (is_word and not has_unit):
            continue
        if OFFSET.match(rest, rest.find(count) + len(count)):
            continue
        end = word.start() + rest.find(count) + len(count)
        is_denied_here = is_denied(text[end:]) or is_denied_before(before, text[end:])
        is_aside = _ASIDE.search(before) is not None and not has_unit
        if not is_denied_here and not GOES_ON.match(text[end:]) and not is_aside:
            counts.append(count)
    if len(counts) == 1:
        return counts[0]
    return ""
