"""Names and verdicts that a sentence states, if they are the reference."""

from __future__ import annotations

import re
from collections.abc import Set as Collection

from lit_rlvr.answers.characters import ALPHABET
from lit_rlvr.answers.names import YES_NO
from lit_rlvr.answers.parse import parse
from lit_rlvr.answers.retracted import has_denial, is_denied_before
from lit_rlvr.answers.values import text_keys

_VERDICT_WORD = "|".join(sorted(YES_NO, key=len, reverse=True))
_FIRST_WORD = re.compile(
    rf"(?i)(?:(?:[{ALPHABET}]+\s+){{0,2}}[{ALPHABET}]+[,:]\s+|so\s+)?({_VERDICT_WORD})(?![{ALPHABET}])(?=\s*(?:[,.;:!\uff0c\u3002-]|$))"
)
_LAST_WORD = re.compile(
    r"(?i)(?:[,:.!?]|\b(?:say|says|be|evaluates to|returns?|prints?|outputs?|yields?)\b)\s*(?:so\s+)?"
    rf"({_VERDICT_WORD})\W*$"
)
CLEFT = re.compile(r"(?:(?:So|Thus|Hence|Therefore),?\s+)?[Ii]t(?:'s| is| was)\s+(.+?)\s+(?:who|that|which)\s")
"""The name that a sentence is about: "It was Darwin who wrote it."."""


_JUDGED = re.compile(
    r"(?i)(?:[a-z]+[!.,]\s+)?(?:so,?\s+|therefore,?\s+|thus,?\s+|hence,?\s+)?(?:(?:the|this|that)\s+)?"
    r"(?:statement|claim|assertion|proposition|it|this|that)(?:\s+is|'s)\s+(?P<denial>not\s+)?"
    r"(?P<verdict>true|false|correct|incorrect)\s*(?:$|[.,;:]|because\b|since\b|as\b)"
)
"""A sentence that says of a statement whether it is true."""


def verdict_of_line(text: str) -> str:
    """Return yes or no, in any language, if a sentence begins with it or ends with nothing else behind a comma."""
    match = _FIRST_WORD.match(text) or _LAST_WORD.search(text)
    if match:
        return match[1]
    judged = _JUDGED.match(text)
    if judged is None:
        return ""
    is_true = judged["verdict"].lower() in ("true", "correct")
    if is_true != bool(judged["denial"]):
        return "true"
    return "false"


def opening_verdict(first: str) -> str:
    """Return yes or no if the first line of a text begins with it."""
    match = _FIRST_WORD.match(first)
    if match:
        return match[1]
    return ""


_JOINS = re.compile(r"(?i)(?:\b(?:or|and|nor|oder|und|ou|et|o|y)|/)[\s*`]*$")
"""The end of a text that joins what follows with another answer."""


def _is_alone_behind(before: str) -> bool:
    """Return True if the text before a name neither denies it nor joins it with another one."""
    return not is_denied_before(before, "") and _JOINS.search(before) is None


def is_marked_answer(marked: str, text: str, keys: Collection[str]) -> bool:
    """Return True if what is bold or code at the end of a text is the reference, and is not denied."""
    if not marked or keys.isdisjoint(text_keys(parse(marked))):
        return False
    return _is_alone_behind(text.rpartition(marked)[0])


_PLACED = re.compile(r"(?:[a-z]s?|\d)\s+(?:on|in|at)\s+(?:(?:an?|the)\s+)?([A-Z]\w+(?:\s+[A-Z]\w+)*)\W*$")
"""The name that a sentence ends with: "The 1st falls on a Monday."."""


def stated_name(clause: str, keys: Collection[str]) -> str:
    """Return what a clause says of its subject behind a participle or preposition: "facing East", "in Paris"."""
    match = re.match(
        r"(?:(?:so|then|now|thus|hence|therefore)\s+)?"
        r"(?:(?:an?|the)\s+(?:example|type|kind|form|case|instance)\s+of\s+)?"
        r"(?:(?:called|named|known as|[a-z]+ing|located|made|said to be)\s+)?(?:(?:in|at|on|to|as|by|the"
        r"|an?|towards?)\s+)*(.+)",
        clause,
    )
    placed = _PLACED.search(clause)
    if placed and not has_denial(clause):
        words = placed[1]
    elif match:
        words = re.sub(r"^\u662f|\u7684$", "", match[1].strip(" .!*"))
    else:
        words = ""
    denied = re.search(r"\bnot\s+(\w+)\W*$", clause)
    if denied:
        for prefix in ("in", "un", "im", "non"):
            if prefix + denied[1].lower() in keys:
                return prefix + denied[1]
    chinese = re.search(r"[\u662f\u4e3a]\s*([\u4e00-\u9fff]+?)\u7684?[.\s]*$", clause)
    for name in (words, chinese[1] if chinese else ""):
        if name and not keys.isdisjoint(text_keys(parse(name))):
            return name
    return ""


_SUBJECT = re.compile(
    r"((?:[Tt]he )?[A-Z][^,;:.]{0,60}?)\s+(?:is|was|are|were)\s+(?:the|called|[^\W\d_]+'s)\s[^,;:.]*\.?"
)
"""A sentence whose subject is defined by the rest of it: "Paris is the capital of France."."""
_EXPLAINED = re.compile(r"([A-Z][\w-]*(?: [\w-]+){0,3}),\s+(?:which|who|the|an?)\s[^,;:]*$")
"""A name at the beginning of a line, and what it is: "Nitrogen, which is most of the air."."""


_DOER = re.compile(r"([A-Z][\w'-]*(?: [A-Z][\w'-]*){0,3})\s+[a-z]+\s+(?:it|this|that|them)\.?")
"""Who did what was asked about: "Shakespeare wrote it."."""


def stated_subject(text: str, keys: Collection[str]) -> str:
    """Return the subject of a sentence that says who or what it is, if it is the reference."""
    match = _SUBJECT.fullmatch(text) or _EXPLAINED.match(text) or _DOER.fullmatch(text)
    if match and not has_denial(text) and not keys.isdisjoint(text_keys(parse(match[1]))):
        return match[1]
    return ""


_SUBSTANCE = re.compile(r"\d*[A-Z][A-Za-z]?[\w{}()^+-]*")


def _chemical(text: str) -> str:
    """Return the chemical formula with a number that a sentence ends with, or the reaction; "" without one."""
    before, arrow, behind = text.removesuffix(".").rpartition("->")
    if not arrow:
        before, arrow, behind = text.removesuffix(".").rpartition("\\to")
    if not arrow:
        last = text.removesuffix(".").rpartition(" ")[2]
        if _SUBSTANCE.fullmatch(last) and re.search(r"\d", last):
            return last
        return ""
    words = before.split()
    first = len(words) - 1
    while first >= 2 and words[first - 1] == "+" and _SUBSTANCE.fullmatch(words[first - 2]):
        first -= 2
    substances = [*words[first::2], *behind.strip().split(" + ")]
    if all(map(_SUBSTANCE.fullmatch, substances)):
        return f"{' '.join(words[first:])} {arrow}{behind}"
    return ""


_ALSO_NAMED = re.compile(
    r"\b(?:i\.e\.,?|that is,|namely|in other words,|called|known as|referred to as"
    r"|(?:is|was|are|were)\s+[a-z]+\s+by)\s+((?:an?\s+|the\s+)?[^,;:]+?)"
    r"(?:\s+\([^()]*\))?\.?$"
)
"""What something is called: "a group of lions is known as a pride"."""
_IN_BRACKETS = re.compile(r"[a-z] \(([^()]+)\)\.?$")
"""Another name in brackets at the end: "silver chloride (AgCl)."."""


def stated_formula(text: str, keys: Collection[str]) -> str:
    """Return the chemical formula, reaction or other name that a sentence ends with, if it is the reference."""
    chemical = _chemical(text)
    if chemical and not keys.isdisjoint(text_keys(parse(chemical))):
        before = text[: text.rfind(chemical.split()[0])]
        if _is_alone_behind(before):
            return chemical
    for pattern in (_ALSO_NAMED, _IN_BRACKETS):
        match = pattern.search(text)
        if match is None or keys.isdisjoint(text_keys(parse(match[1]))):
            continue
        if _is_alone_behind(text[: match.start(1)]):
            return match[1]
    return ""
