"""The parts of a sentence: its verb, its clauses, their reasons and conclusions."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lit_rlvr.answers.characters import ALPHABET
from lit_rlvr.answers.spans import DELIMITED, find_spans, is_value, without_known

_CLAUSE = re.compile(
    r"[.;?](?:\s|$)|!(?=\s+[A-Z][a-z]|\s*$)|,?\s+\(?(?:because|since|which|as|so|when|where|for|that|with|after"
    r"|altogether|in total|i\.e\.|if|but|by)\b"
    r"|,\s+(?=(?!and\b|or\b)[a-z]{2,})|\s+-\s+(?=[a-z]{2,})|(?<![-+*/=^])\s\((?!(?:[A-J]|\d{1,2})\))|(?<!\d\s):\s"
)
_THERE = re.compile(r"(?i)\bthere\s+(?:is|are|was|were|remains?)\s+")
_VERB = re.compile(
    r"(?<!that )(?<!which )(?<!who )(?<!where )(?<!\bor )\b(?:is|are|was|were|be|equals?|becomes?"
    r"|gives?(?! (?:away|back|up|out)\b)|gets?|obtain|have|has|yields?|returns?|prints?|outputs?"
    r"|est|sont|ist|sind|es(?! (?:gibt|sind|ist)\b)|son|\u00e8|sono|\u00e9|s\u00e3o|betr\u00e4gt|lautet|vale|vaut)"
    r"\s+(?:that\s+)?(?:(?:us|me|you|him|her|them)\s+)?(?:the\s+)?(?:(?:el|la|die|der|das|le|il|o)\s+(?=\d)|de\s+(?=[-$\\(\d]|[a-z]\s?[-+=]))?"
    r"(?:all\s+(?:real\s+)?(?:numbers\s+)?(?:\$?[a-z]\$?\s+(?:with|such that|where)\s+|(?=[$\\])))?"
)
_OPERATION = re.compile(r"\d\S*\s+(?:divided|multiplied)$")
_SO = re.compile(
    r"(?i)(?:[,;.]|\s+and)\s+(?:i\.e\.,?\s+|(?:so|thus|hence|therefore|then|which (?:gives|means|makes(?! up))"
    r"|giving|making|namely|in other words|that is(?=,)|or equivalently)\b,?\s+"
    r"(?!that\b|far\b|many\b|much\b|long\b)(?:(?:us|me|you|them)\s+)?)"
    r"|(?<=\w)\.\s+(?:That|This)(?:'s|\s+(?:is|makes|gives|means))\s+(?!why\b|because\b|the same\b"
    r"|[^.]*\b(?:more|[a-z]{2,}er|less) than\b)(?=[^.]*\.?$)"
)
"""Before the conclusion of a line."""
_ARROW = re.compile(
    r"\s(?:[\u2192\u21d2]|[-=]+>|\\to|\\Rightarrow)\s+(?=(?:\\?[$\u20ac\u00a3])?\d[\d.,]*(?:\s?%|\s[a-z]+)?\.?$)"
)
"""Between what was worked out and the number that comes of it: "40 at $30 each -> $1,200"."""
_REASON_FIRST = re.compile(r"(?i)(?:since|because|as|if|when|given that)\s[^,]*,\s+(?:then\s+)?(?=[A-Za-z]{2})")
_CLOSED_CLASS = (
    r"in|of|per|from|at|on|by|to|than|with|for|and|or|more|less|fewer|each|every|within|during|after|before|until|about|"
    r"only|exactly|plus|minus|times|the|an?|is|are|was|were|grade|day|page|step|chapter|number|part|year|week|room|level|"
    r"over|under|between|through|into|out|as|if|when|where|which|that|because|since|so|but|not|nor|equals?"
)
_PREDICATE = re.compile(
    rf"[$\\]?\d[\d.,]*\$?\s+(?!(?:{_CLOSED_CLASS})\s)[{ALPHABET}]+\s[^.;]*?(?<!\d\s)\b(?!(?:{_CLOSED_CLASS})\s)[a-z]{{2,}}\s+(?=[$\\]?\d)"
)
"""The subject of a sentence that begins with a number, and a verb before another one: "10 ducks need 5 pounds"."""
LONGEST_STATED = 80
"""The most characters of a value behind the colon of a sentence."""


def behind_colon(text: str) -> str:
    """Return the value that stands behind the only colon of a sentence of three words or more; "" without one."""
    sentence, _, stated = text.removesuffix(".").partition(": ")
    is_sentence = len(sentence.split()) > 2 and not re.search(r"\d\s$", sentence)
    if is_sentence and len(stated) <= LONGEST_STATED and ":" not in stated and is_value(stated):
        return stated
    return ""


_REASON = re.compile(r",?\s+\(?(?:because|since(?!\s+\d{4}\b))\s")
_HOLDS = re.compile(r"\s*(?:works|holds|fits|suffices|satisfies\b.*|is (?:the|an?) (?:only |right |correct )?\w+)$")
_THEREFORE = re.compile(r"(?i)^\s*(?:(?:therefore|thus|hence|so)\b,?\s*)?$")
_STATES = re.compile(r"=|\b(?:is|are|was|were|equals?)\b")
"""In a reason that may state the answer itself: "because the sum is 12"."""
_REJECTS = re.compile(r"(?i)\b(?:fail|wrong|reject|exclud|discard|thought|ruled? out|too)")


def before_reason(text: str) -> str:
    """Return what stands before the reason that a line ends with, if it states a value; else the line."""
    reason = _REASON.search(text)
    if reason is None:
        return text
    before = text[: reason.start()]
    first = next(iter(find_spans(before)), None)
    if not find_spans(text) and not _REJECTS.search(before) and not before.startswith(" "):
        return before
    if first is None or _REJECTS.search(before):
        return text
    verb = find_verb(before, False)
    has_value_behind = verb is not None and len(find_spans(before[verb.end() :])) > 0
    holds = not _THEREFORE.sub("", before[: first[0]]) and _HOLDS.match(before[first[1] :])
    is_only = len(without_known(before)) == 1 and not _STATES.search(text, reason.end())
    if has_value_behind or holds or is_only or is_value(before):
        return before
    return text


_PARTS = re.compile(
    r",\s+\S+\s+of (?:which|whom|them)\b|,?\s+of (?:which|whom)\b"
    r"|,\s+(?:von denen|davon|darunter|de l[oa]s (?:cuales|que)|dont"
    r"|parmi lesquel(?:le)?s|di cui|d[oa]s quais|waarvan|из (?:них|которых))\s|[\uff0c,]?\u5176\u4e2d"
)


def without_parts(text: str) -> str:
    """Return a text without the parts of its count: "12, of which 4 are red"."""
    whole = _PARTS.split(text)[0]
    if find_spans(whole):
        return whole
    return text


def is_unread_chain(clause: str) -> bool:
    """Return True for an operation in words, and for steps with units that are no equation: "90 s * 2 m/s = 180 m"."""
    if _OPERATION.search(clause):
        return True
    delimited = DELIMITED.match(clause)
    if delimited and is_value(delimited[0]):
        return False
    return re.match(r"[\d$(\\].*[A-Za-z].*=", clause) is not None and not is_value(clause)


_OTHER_REASON = r"(?:since|because|as|given that)\s[^,;.]*,\s+(?:then\s+)?(?=[A-Za-z$\\])"
OWN_REASON_CLAUSE = re.compile(rf"[;.]\s+{_OTHER_REASON}")
_OWN_REASON = re.compile(rf"[;.,]\s+(?:and\s+)?{_OTHER_REASON}")


def behind_reason(text: str, pattern: re.Pattern[str]) -> str:
    """Return what stands behind the reason of a second clause, if it has a value: "2 or -2; since x > 0, x = 2"."""
    for reason in pattern.finditer(text):
        if find_spans(text[reason.end() :]):
            return text[reason.end() :]
    return text


_COMPUTED = re.compile(r"\d\S*\s+of\s+\$?\d[\d,.]*?,\s+or\s+(?=\$?\d)")
"""A share of a number, before its value: "2/5 of $60, or $24"."""


def conclusion(text: str) -> str:
    """Return the conclusion of a line behind its last "so", if it has a value; else the line."""
    reason = _REASON_FIRST.match(text)
    if reason and find_spans(text[reason.end() :]):
        text = text[reason.end() :]
    text = behind_reason(text, _OWN_REASON)
    computed = _COMPUTED.search(text)
    if computed:
        text = text[computed.end() :]
    last = _SO.split(text)[-1]
    arrow = _ARROW.search(last)
    if arrow and re.search(r"\d", last[: arrow.start()]):
        return last[arrow.end() :]
    if find_spans(last):
        return last
    return text


_KNOWN = re.compile(r"(?:all|both|the|these|those)\s+(?:of\s+)?(?:the\s+)?\d+\s+[a-z]{3}")
_PASSIVE = re.compile(
    r"(?:is|are|was|were|be)\s+[a-z]+(?:ed|en|wn|pt|nt|ld)\s+(?:in|into|on|onto|among|across|to|from|at)\b"
)
_INFINITIVE = re.compile(r"\d.*\bto\s+$")


def _verbs(text: str) -> Iterator[re.Match[str]]:
    """Yield the verbs of a text but those behind the answer.

    These are a purpose ("wait 14 days to get all 42 stamps") and where things are ("9 were sent to 3 of them").
    """
    for verb in _VERB.finditer(text):
        is_purpose = _INFINITIVE.search(text, 0, verb.start()) and _KNOWN.match(text, verb.end())
        is_passive = _PASSIVE.match(text, verb.start()) and re.search(r"\d", text[: verb.start()])
        if not is_purpose and not is_passive:
            yield verb


def find_verb(text: str, is_phrase: bool) -> re.Match[str] | None:
    """Return the verb before the answer of a line, or of a phrase that is a sentence with another number before it."""
    if not is_phrase:
        return _THERE.search(text) or max(_verbs(text), key=re.Match.start, default=None)
    cut = end_of_clause(text)
    end = cut if cut is not None else len(text)
    verb = max(_VERB.finditer(text, 0, end), key=re.Match.start, default=None)
    if verb and re.search(r"\d", text[: verb.start()]) and re.search(r"\d|\\", text[verb.end() : end]):
        return verb
    reason = re.search(r",|\b(?:because|since|as|so|if|when|where|which|that|but)\b", text)
    return _PREDICATE.match(text, 0, reason.start() if reason else len(text))


def end_of_clause(text: str) -> int | None:
    """Return where the clause that a text begins with ends, outside brackets; None if it is all of the text."""
    for match in _CLAUSE.finditer(text):
        before = text[: match.start()]
        if all(before.count(opening) <= before.count(closing) for opening, closing in ("()", "[]", "{}")):
            return match.start()
    return None
