"""Numbers in languages that write a decimal comma and dots between thousands."""

from __future__ import annotations

import re
from dataclasses import replace

from lit_rlvr.answers.find import Found

_WORDS = {
    "de": "der die das und ist sind ein eine er sie wir f\u00fcr nicht mit von zu den dem des sich auf insgesamt also "
    "im zum zur aus bei nach pro hat haben wird werden betr\u00e4gt kostet kosten dazu somit damit dann noch",
    "es": "el la los las es son una un por para con que del se m\u00e1s en y total respuesta "
    "al tiene hay cuesta entonces cada su sus",
    "fr": "le la les est sont une un des du et pour avec que dans il elle donc total r\u00e9ponse "
    "au aux sur par co\u00fbte chaque soit ce cette ses",
    "it": "il lo la gli \u00e8 una un per con che di della sono quindi risposta al del dei costa ogni ha",
    "pt": "o a os as \u00e9 uma um por para com que do da s\u00e3o portanto resposta em no na custa cada tem",
    "nl": "de het een en van zijn met dus voor wij antwoord is kost elke per heeft op",
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


_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:\.\d{3})+|\d+),\d+(?![\d.,])")
_DECIMAL_POINT = re.compile(r"(?<![\d.,])\d*\.(?:\d{1,2}|\d{4,})(?![\d.,])")


def has_only_decimal_commas(text: str) -> bool:
    """Return True if a text in a language with a decimal comma has one and no decimal point."""
    last = text[-READ:]
    return has_decimal_comma(text) and bool(_DECIMAL_COMMA.search(last)) and not _DECIMAL_POINT.search(last)


def has_dotted_thousands(text: str) -> bool:
    """Return True for a text with a number such as "1.250", which English reads as a decimal."""
    return _THOUSANDS.search(text) is not None


def with_decimal_point(found: Found) -> Found:
    """Return an answer with its dotted thousands and decimal commas as English writes them."""
    return replace(found, text=pointed_number(found.text), above=tuple(map(pointed_number, found.above)))


def is_decimal_comma(text: str) -> bool:
    """Return True for a number with a decimal comma and no group of thousands: "3,5"."""
    return _WITH_COMMA.fullmatch(text.strip()) is not None


def pointed_number(text: str) -> str:
    """Return a text with its numbers as English writes them."""
    return _COMMA.sub(".", _THOUSANDS.sub(lambda match: match[0].replace(".", ""), text))
