"""Numbers in languages that write a decimal comma and dots between thousands."""

from __future__ import annotations

import re
from dataclasses import replace

from lit_rlvr.answers.find import Found

_WORDS = {
    "de": "der die das und ist sind ein eine er sie wir f\u00fcr nicht mit von zu den dem des sich auf insgesamt also",
    "es": "el la los las es son una un por para con que del se m\u00e1s en y total respuesta",
    "fr": "le la les est sont une un des du et pour avec que dans il elle donc total r\u00e9ponse",
    "it": "il lo la gli \u00e8 una un per con che di della sono quindi risposta",
    "pt": "o a os as \u00e9 uma um por para com que do da s\u00e3o portanto resposta",
    "nl": "de het een en van zijn met dus voor wij antwoord",
}
"""Frequent words of languages with a decimal comma."""
_SETS = [frozenset(words.split()) for words in _WORDS.values()]
_ENGLISH = frozenset(["the", "is", "are", "of", "and", "we", "so", "to", "has", "have", "answer"])
_CYRILLIC = re.compile("[\u0400-\u052f]{2}")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3})+(?![\d.])")
_COMMA = re.compile(r"(?<=\d),(?=\d)")
_WITH_COMMA = re.compile(r"-?\d+,(?:\d{1,2}|\d{4,})")
READ = 1000
"""Characters from the end by which the language is told."""


def has_decimal_comma(text: str) -> bool:
    """Return True if a text is in a language with a decimal comma: two of its frequent words, and no English ones."""
    if _CYRILLIC.search(text[-READ:]):
        return True
    words = set(re.findall(r"[^\W\d_]+", text[-READ:].lower()))
    return len(words & _ENGLISH) < 2 and any(len(words & known) > 1 for known in _SETS)


def with_decimal_point(found: Found) -> Found:
    """Return an answer with its dotted thousands and decimal commas as English writes them."""
    return replace(found, text=pointed_number(found.text), above=tuple(map(pointed_number, found.above)))


def is_decimal_comma(text: str) -> bool:
    """Return True for a number with a decimal comma and no group of thousands: "3,5"."""
    return _WITH_COMMA.fullmatch(text.strip()) is not None


def pointed_number(text: str) -> str:
    """Return a text with its numbers as English writes them."""
    return _COMMA.sub(".", _THOUSANDS.sub(lambda match: match[0].replace(".", ""), text))
