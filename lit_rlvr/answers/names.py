"""Names in several forms: turned round, behind the kind of a thing, before a formula; yes and no in many languages."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lit_rlvr.answers.countries import without_country

_VERDICTS = {
    "yes": "yes sí si oui ja sim да tak kyllä evet はい 네 예 có vâng نعم हाँ हां ano 是 是的",
    "no": "no non nein não нет nee nie nej nei ei hay\u0131r いいえ 아니요 아니오 không لا नहीं ne 否 不 不是",
    "true": "true wahr vrai verdadero vero верно 对 正确",
    "false": "false falsch faux falso неверно 错 错误 不对",
}
YES_NO = {word: verdict for verdict, words in _VERDICTS.items() for word in words.split()}
"""Answers that are a verdict, in several languages -> the verdict in English."""

LONGEST_NAME = 200

_WORD = r"[A-Z][^\W\d_]+(?:['.-][^\W\d_]+)*\.?"
_NAME = rf"{_WORD}(?:\s+(?:of\s+|de\s+)?{_WORD}){{0,3}}"
_TURNED = re.compile(rf"({_WORD}(?:\s+{_WORD})?),\s+({_WORD}(?:\s+(?:{_WORD}|[A-Z]\.)){{0,2}})")
_NAMES_WHAT_FOLLOWS = (
    "city|town|village|state|kingdom|republic|island|isle|county|province|country|planet|month|name|word|letter"
)
"""Nouns whose "of" stands before their name: the city of Rome; the mayor of Rome is somebody else."""
_OF_ITS_KIND = re.compile(rf"[Tt]he\s+(?:(?i:{_NAMES_WHAT_FOLLOWS})\s+of|(?!capital\b)[a-z]{{3,}})\s+({_NAME})\.?")
_FORMULA = r"(?=[A-Z][a-z]?[\dA-Z_(])(?:[A-Z][a-z]?_?\{?\d*\}?|\((?:[A-Z][a-z]?_?\{?\d*\}?)+\)_?\{?\d*\}?)+"
_WITH_FORMULA = re.compile(rf"((?:[a-z]+[ -])*[a-z]{{3,}}),\s+\$?({_FORMULA})\$?\.?")


def other_names(text: str) -> Iterator[str]:
    """Yield other forms of a text that is a name.

    They are the name without a country behind it ("Rome, Italy"), in its usual order ("Curie, Marie"), without the kind
    of thing before it ("the city of Rome", "the river Nile"), and both parts of a name with its formula ("sulfuric
    acid, H2SO4").
    """
    text = text.strip()
    if len(text) > LONGEST_NAME:
        return
    place = without_country(text)
    if place:
        yield place
        return
    turned = _TURNED.fullmatch(text)
    if turned:
        yield f"{turned[2]} {turned[1]}"
    described = _OF_ITS_KIND.fullmatch(text)
    if described:
        yield described[1]
    formula = _WITH_FORMULA.fullmatch(text)
    if formula:
        yield formula[1]
        yield formula[2]
