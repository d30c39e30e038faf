"""Mathematics in prose: where it stands, and which words behind it belong to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from lit_rlvr.answers.characters import ALPHABET
from lit_rlvr.answers.numbers import MONTH
from lit_rlvr.answers.parse import parse
from lit_rlvr.answers.units import read_unit
from lit_rlvr.answers.values import Expression, Labelled, Number, Reading, Series, Text

_NUMBER = r"(?:[$\u20ac\u00a3\u00a5\u20b9]\s?)?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?%?|\.\d+"
_LATEX = r"\\[A-Za-z]+(?:\s*[\[{](?:[^{}\[\]]|\{(?:[^{}]|\{[^{}]*\})*\})*[\]}])*|\\[%$,;! {}]"
_LETTER = rf"(?<![{ALPHABET}'\\])[A-Za-z](?![{ALPHABET}'])"
_DATE = (
    rf"{MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?(?!\d)|\d{{1,2}}(?:st|nd|rd"
    rf"|th)?(?:\s+of)?\s+{MONTH}(?:,?\s+\d{{4}})?(?!\d)"
)
_SIGN = r"[-+*/^=<>!|_:\u00b1\u00d7\u00f7]"
_TOKEN = rf"(?:{_DATE}|\d++\s++out\s++of\s++\d++|\b1\s++in\s++\d++|{_NUMBER}|{_LATEX}|{_LETTER}|{_SIGN}|[()\[\]{{}},])"
_SPAN = re.compile(rf"{_TOKEN}(?:\s*{_TOKEN})*")
DELIMITED = re.compile(r"\$\$?([^$]+)\$\$?(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_JOINED = re.compile(r"\s*(?:,|;|\band\b|\bor\b|,\s*and\b|,\s*or\b)\s*")
_GIVEN = re.compile(
    r"(?i)\b(?:the|these|those|both|all|my|your|his|her|its|our|their"
    r"|die|den|der|las|los|les|des|dos|dei|gli|delle|degli|alle[nr]?|todos los|todas las)\s+$"
)
"""Before a number of things that are known: "the 9 places"."""
_PROPERTY = re.compile(r"-(?:[a-z]+-)?[a-z]{2,}\s+[a-z]{3,}")
"""Behind a number that describes a thing: "the 200-litre tank"."""


_JOINED_NOUN = re.compile(r"\s+[^\W\d_]+(?: [^\W\d_]+)?,?\s+(?:and|y|und|et|e)\s+")
"""Between a number of known things and one of others: "the 4 pens and 2 pads"."""


def without_known(text: str) -> list[tuple[int, int]]:
    """Return the spans of a text that are no ordinal ("7th"), count nothing known and describe nothing; all if there
    is no other."""
    spans = list(find_spans(text))
    new = []
    was_known = False
    previous = 0
    for start, end in spans:
        is_ordinal = re.match(r"(?:st|nd|rd|th)\b", text[end:]) is not None
        is_given = _GIVEN.search(text[:start]) is not None and re.match(r"\s+[^\W\d_]{3}", text[end:]) is not None
        is_property = _PROPERTY.match(text, end) is not None
        is_joined = was_known and _JOINED_NOUN.fullmatch(text, previous, start) is not None
        was_known = is_given or is_property or is_joined
        previous = end
        if not (is_ordinal or was_known):
            new.append((start, end))
    return new or spans


_REST_OF_WORD = re.compile(r"(?:-[^\W\d_]+)*")


def with_words_for_known(text: str, spans: list[tuple[int, int]]) -> str:
    """Return a text of the same length with words in the place of all mathematics but some spans of it."""
    for start, end in find_spans(text):
        if (start, end) not in spans:
            rest = _REST_OF_WORD.match(text, end)
            end = rest.end() if rest else end
            text = f"{text[:start]}{'n' * (end - start)}{text[end:]}"
    return text


def _items(value: Reading) -> Iterable[Sequence[Reading]]:
    if isinstance(value, Labelled):
        return (item for items in value.values.values() for item in items)
    if isinstance(value, Series):
        return value.items
    return ()


def is_value(phrase: str) -> bool:
    """Return True if a whole phrase means something besides its words."""
    return len(phrase) < 200 and has_value(parse(phrase))


def has_value(values: Iterable[Reading]) -> bool:
    """Return True if a reading is more than words, or a list with words in it."""
    for value in values:
        worded = [all(isinstance(reading, Text) for reading in item) for item in _items(value)]
        if not isinstance(value, Text) and not any(worded):
            return True
    return False


@lru_cache(maxsize=1024)
def find_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Return where mathematics stands in prose; lists of it ("3 and 4") are one."""
    spans: list[tuple[int, int]] = []
    taken = [match.span() for match in DELIMITED.finditer(text) if _is_mathematics(match)]
    for match in _SPAN.finditer(text):
        if _is_exponent_of_unit(text, match):
            continue
        inside = next((span for span in taken if span[0] < match.end() and match.start() < span[1]), None)
        if inside is None:
            spans += _without_words(text, *match.span())
        elif inside not in spans:
            spans.append(inside)
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and _JOINED.fullmatch(text, joined[-1][1], start):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)


_ALPHABETIC = re.compile(f"[{ALPHABET}]")
_UNIT_AND_EXPONENT = re.compile(r"[A-Za-z]\^\{?-?\d\}?")


def _is_exponent_of_unit(text: str, match: re.Match[str]) -> bool:
    """Return True for what a unit behind a number ends with: the "^{2}" of "cm^{2}", "m^{2}" behind "84"."""
    start = match.start()
    if match[0].startswith("^"):
        return start > 0 and _ALPHABETIC.match(text, start - 1) is not None
    if not _UNIT_AND_EXPONENT.fullmatch(match[0]):
        return False
    before = text[:start].rstrip()
    is_behind_number = before[-1:].isdecimal() or before.endswith(("}", "$", ")"))
    return len(before) < start and is_behind_number and read_unit(match[0]) is not None


def _is_mathematics(match: re.Match[str]) -> bool:
    """Return False for the prose between two prices."""
    inside = next(group for group in match.groups() if group is not None)
    is_price = bool(match[1]) and inside[-1:].isspace() and not inside[:1].isspace()
    return not re.search(r"(?<![\\A-Za-z{])[A-Za-z]{3,}\s+[A-Za-z]{2,}", inside) and not is_price


def _without_words(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return a run of mathematics without the one-letter words, signs and brackets around it; [] if nothing is left."""
    run = text[start:end]
    if not re.search(r"\d|\\", run):
        return []
    lead = re.match(rf"(?:{_LETTER}(?!\s*[-=<>^_(+*/\\])\s*|[=:*/+^!,|_>)\]}}]\s*|-\s+(?=\\?[A-Za-z]))+", run)
    start += lead.end() if lead else 0
    run = text[start:end]
    tail = re.search(rf"(?:\s+{_LETTER}|\s*[=:*/+^,|_<>(\[{{-])+\s*$", run)
    end -= len(run) - tail.start() if tail else 0
    run = text[start:end]
    for opening, closing in ("()", "[]", "{}"):  # a bracket of the sentence
        if run.endswith(closing) and run.count(closing) > run.count(opening) and not re.search(r"[\[(].*[\])]$", run):
            end -= 1
    if re.search(r"\d|\\", text[start:end]):
        return [(start, end)]
    return []


def with_unit(text: str, start: int, end: int) -> str:
    """Return a run of mathematics with the words behind it that belong to it: a magnitude, a unit."""
    span = text[start:end]
    letters = rf"[{ALPHABET}\u4e00-\u9fff%/]"
    words = re.match(
        rf"(?:\s*(?!(?:and|or)\b)(?:{letters}|[.-](?={letters}))+(?:\^\{{?-?\d\}}?)?\.?){{1,3}}", text[end:]
    )
    if words:
        pieces = re.findall(rf"\s*[{ALPHABET}\u4e00-\u9fff%/-]+(?:\^\{{?-?\d\}}?)?\.?", words[0])
    else:
        pieces = []
    plain = parse(span)
    for count in range(len(pieces), 0, -1):
        if pieces[count - 1].strip() in ("a", "an"):  # "$5 a day"
            continue
        if pieces[count - 1].strip() == "in" and (count < len(pieces) or span[:1] == "$" or span[:2] == "\\$"):
            continue  # "$5 in total", no inches
        longer = span + "".join(pieces[:count]).rstrip(".")
        values = parse(longer)
        is_counted = any(isinstance(value, Number) and value.noun for value in values)
        new_values = [value for value in values if not isinstance(value, Text)]
        if any(isinstance(value, Expression) for value in new_values):  # "56 de bile" is no product
            continue
        if is_value(longer) and (is_counted or new_values != [v for v in plain if not isinstance(v, Text)]):
            return longer
    return span
