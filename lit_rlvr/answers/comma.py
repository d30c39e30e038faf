"""Numbers in languages that write a decimal comma and dots between thousands."""

from __future__ import annotations

import re
from dataclasses import replace

from lit_rlvr.answers.find import Found

_WORDS = {
    "de": "der die das und ist sind ein eine er sie wir f\u00fcr nicht mit von zu den dem des sich auf insgesamt also "
    "im zum zur aus bei nach pro hat haben wird werden betr\u00e4gt kostet kosten dazu somit damit dann noch zuerst "
    "man ergebnis antwort l\u00f6sung erh\u00e4lt summe gleich braucht wert folglich endergebnis gesamt davon",
    "es": "el la los las es son una un por para con que del se m\u00e1s en y respuesta al tiene hay cuesta entonces "
    "cada su sus primero luego as\u00ed resultado soluci\u00f3n valor suma vale quedan tenemos obtenemos decir",
    "fr": "le la les est sont une un des du et pour avec que dans il elle donc r\u00e9ponse au aux sur par co\u00fbte "
    "chaque soit ce cette ses abord on trouve obtient ainsi r\u00e9sultat somme valeur reste faut",
    "it": "il lo la gli \u00e8 una un per con che di della sono quindi risposta al del dei costa ogni ha "
    "risultato valore",
    "pt": "o a os as \u00e9 uma um por para com que do da s\u00e3o portanto resposta em na custa cada tem "
    "resultado valor",
    "nl": "de het een en van zijn met dus voor wij antwoord kost elke per heeft op uitkomst",
}
"""Frequent words of languages with a decimal comma."""
_SETS = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_ENGLISH_WORDS = "the is are of and we so to has have answer it he she they for there this that with from get let us by"
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_CYRILLIC = re.compile("[\u0400-\u052f]{2}")
_ACCENTED = re.compile("[\u00bf\u00a1\u00df-\u00f6\u00f8-\u00ff\u0153]")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3})+(?!\.?\d)")
_COMMA = re.compile(r"(?<=\d),(?=\d)")
_WITH_COMMA = re.compile(r"-?\d+,(?:\d{1,2}|\d{4,})")
_WITH_POINTS_TOO = frozenset(["es", "fr"])
"""Languages in which numbers with a decimal point are also common."""
READ = 1000
"""Characters from the end by which the language is told."""


def _languages(text: str) -> set[str]:
    """Return the likeliest languages of a text with a decimal comma; none for English.

    The text has at least two of their frequent words, or one and an accent.
    """
    if _CYRILLIC.search(text):
        return {"ru"}
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    if len(words & _ENGLISH) > 1:
        return set()
    counts = {language: len(words & known) for language, known in _SETS.items()}
    most = max(counts.values())
    needed = 2 - bool(_ACCENTED.search(text.lower()))
    return {language for language, count in counts.items() if count == most >= needed}


def has_decimal_comma(text: str) -> bool:
    """Return True if a text is in a language with a decimal comma."""
    return bool(_languages(text[-READ:]))


_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:\.\d{3})+|\d+),\d+(?![.,]?\d)")
_DECIMAL_POINT = re.compile(r"(?<![\d.,])(?:\d*\.(?:\d{1,2}|\d{4,})|0\.\d+)(?![.,]?\d)")


def has_only_decimal_commas(text: str) -> bool:
    """Return True if a text is in a language with a decimal comma and has no decimal point.

    In languages whose writers use both, it must have a decimal comma.
    """
    last = text[-READ:]
    languages = _languages(last)
    if not languages or _DECIMAL_POINT.search(last):
        return False
    return not languages & _WITH_POINTS_TOO or _DECIMAL_COMMA.search(last) is not None


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
