"""The characters of answers: one for all that look or mean the same, in any script."""

from __future__ import annotations

import re
import unicodedata

ALPHABET = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0400-\u052f\u1e00-\u1eff"
"""The letters of alphabets that words are written in, for a class of a regular expression; no Greek, no Chinese."""
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d\u2043"
_COMMANDS = {
    "\u221e": "infty", "\u00d7": "times", "\u00b7": "cdot", "\u22c5": "cdot", "\u2219": "cdot", "\u2022": "cdot",
    "\u00f7": "div", "\u2264": "le", "\u2a7d": "le", "\u2266": "le", "\u2265": "ge", "\u2a7e": "ge", "\u2267": "ge",
    "\u2260": "ne", "\u2248": "approx", "\u2245": "approx", "\u222a": "cup", "\u2229": "cap", "\u2208": "in",
    "\u00b1": "pm", "\u2213": "mp", "\u2205": "emptyset", "\u2300": "emptyset", "\u2216": "setminus",
    "\u2192": "to", "\u27f6": "to", "\u21d2": "to", "\u2220": "angle", "\u2211": "sum", "\u222b": "int",
    "\u27e8": "langle", "\u27e9": "rangle", "\u2329": "langle", "\u232a": "rangle", "\u22ef": "dots",
    "\u2026": "dots", "\u2228": "or", "\u2227": "and",
}  # fmt: skip
_GREEK = {
    "\u03b1": "alpha", "\u03b2": "beta", "\u03b3": "gamma", "\u03b4": "delta", "\u03b5": "epsilon", "\u03b6": "zeta",
    "\u03b7": "eta", "\u03b8": "theta", "\u03bb": "lambda", "\u03bc": "mu", "\u03bd": "nu", "\u03be": "xi",
    "\u03c0": "pi", "\u03c1": "rho", "\u03c3": "sigma", "\u03c4": "tau", "\u03c6": "phi", "\u03c7": "chi",
    "\u03c8": "psi", "\u03c9": "omega", "\u0393": "Gamma", "\u0394": "Delta", "\u0398": "Theta", "\u039b": "Lambda",
    "\u03a3": "Sigma", "\u03a6": "Phi", "\u03a8": "Psi", "\u03a9": "Omega",
}  # fmt: skip
_PLAIN = {
    "\u2044": "/", "\u2215": "/", "\u2236": ":", "\u066b": ".", "\u066c": ",", "\u3001": ", ", "\u3002": ". ",
    "\u00b0": "^\\circ ", "\u02da": "^\\circ ", "\u00ba": "^\\circ ", "\u2103": "^\\circ C", "\u2109": "^\\circ F",
    "\u211d": "\\mathbb{R}", "\u2124": "\\mathbb{Z}", "\u2115": "\\mathbb{N}", "\u2018": "'", "\u2019": "'",
    "\u2032": "'", "\u2039": "<", "\u203a": ">", "\u2126": "\\Omega ", "\u00b5": "\\mu ",
    "\u201c": '"', "\u201d": '"', "\u2033": '"', "\u300c": '"', "\u300d": '"',
}  # fmt: skip
_TABLE = str.maketrans(
    dict.fromkeys(_DASHES, "-") | {c: f"\\{name} " for c, name in (_COMMANDS | _GREEK).items()} | _PLAIN
)
_GREEK_WORD = re.compile(
    "([\u0370-\u03ff\u1f00-\u1fff]*[\u0386-\u0390\u03aa-\u03b0\u03c2\u03ca-\u03ce\u1f00-\u1fff]"
    "[\u0370-\u03ff\u1f00-\u1fff]*|[\u0370-\u03ff\u1f00-\u1fff]{4,})"
)
"""A word of Greek, whose letters are no symbols: one with an accent or a final sigma, or with at least four letters."""
_CONNECTIVES = (
    (re.compile(r"(?:(?<!\s)\s+)?\u6216\u8005?\s*"), " or "),
    (re.compile(r"(?:(?<!\s)\s+)?(?:[\u548c\u4e0e\u53ca\u4e14]|\u5e76\u4e14)\s*"), " and "),
    (re.compile(r"(?<=\d)\s*\u6bd4\s*(?=\d)"), ":"),
)
"""Chinese words between values, and what they mean."""
_CIRCLED = re.compile(r"[\u2460-\u2473]\s*[,\u3001]?\s*")
_ROOT_OF, _PART_OF = re.compile("\u500d?\u6839\u53f7"), re.compile(r"(\d+)\s*\u5206\u4e4b\s*(\d+)")
"""The Chinese words of a square root, and of a fraction with its denominator first."""
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207f\u2071"
_LOWERED = re.compile("[\u2080-\u208e]+")
_POWER = re.compile(f"[{_RAISED}]+")
_VULGAR = re.compile(r"(?:(\d)\s*|(?<!\s)\s+)?([\u00bc-\u00be\u2150-\u215e\u2189])")
_POWER_OF_CODE = re.compile(
    r"(?:(?<=[\d)\]}])|(?<=\b[A-Za-z]))(?:\*\*|\s\*\*\s)(?:(?P<exponent>-?(?:\d+(?:\.\d+)?|[A-Za-z]\b))|(?=\())"
)
_NOT_ASCII = re.compile("[^\\x00-\\x7f]")
_ROOT = re.compile(r"([\u221a\u221b\u221c])\s*(\{[^{}]*\}|\([^()]*\)|\d+(?:\.\d+)?|\\?[A-Za-z]+|)")
_ORDER = {"\u221a": "", "\u221b": "[3]", "\u221c": "[4]"}


def plain_characters(text: str) -> str:
    """Return the text with one character for all that look or mean the same.

    Unicode's NFKC, except where that changes the meaning: `x\u00b2` becomes `x^{2}` (not `x2`), `2\u2153` becomes
    `2 1/3` (not `21/3`). Digits of all scripts become ASCII digits; dashes, spaces, quotes and signs one of each, signs
    their LaTeX command; characters without a width vanish.
    """
    if text.isascii():
        return text
    text = _ROOT_OF.sub("\u221a", _PART_OF.sub(r"\2/\1", text))
    text = _VULGAR.sub(_fraction, text)
    text = _CIRCLED.sub(lambda match: f"({ord(match[0][0]) - 0x245F}), ", text)
    text = _POWER.sub(lambda match: f"^{{{_ascii(match[0])}}}", text)
    text = _translated(_LOWERED.sub(lambda match: f"_{{{_ascii(match[0])}}}", text))
    text = _ROOT.sub(lambda match: f"\\sqrt{_ORDER[match[1]]}{_braced(match[2])}", text)
    text = _ascii(text)
    for pattern, meaning in _CONNECTIVES:
        text = pattern.sub(meaning, text)
    return text


def with_carets(text: str) -> str:
    """Return the text with powers as LaTeX writes them in place of code's: `10**6`, `x ** -2`, `2**(1/2)`."""
    return _POWER_OF_CODE.sub(_with_caret, text)


def _with_caret(match: re.Match[str]) -> str:
    exponent = match["exponent"]
    if exponent:
        return f"^{{{exponent}}}"
    return "^"


def _ascii(text: str) -> str:
    """Return NFKC of the text with ASCII digits, dashes and spaces, without characters that have no width."""
    return _NOT_ASCII.sub(_plain_character, _translated(unicodedata.normalize("NFKC", text)))


def _plain_character(match: re.Match[str]) -> str:
    """Return an ASCII digit or space for another one, and nothing for a character without a width."""
    character = match[0]
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Cf":
        return ""
    if character == "\u2028":
        return " "
    return character


def _translated(text: str) -> str:
    """Return the text with the characters of the table replaced, except in words of Greek."""
    pieces = _GREEK_WORD.split(text)
    pieces[::2] = [piece.translate(_TABLE) for piece in pieces[::2]]
    return "".join(pieces)


def _fraction(match: re.Match[str]) -> str:
    numerator, _, denominator = unicodedata.normalize("NFKC", match[2]).partition("\u2044")
    if match[1]:
        return f"{match[1]} {numerator}/{denominator}"
    return f"{numerator}/{denominator}"


def _braced(radicand: str) -> str:
    if radicand.startswith("{"):
        return radicand
    return f"{{{radicand}}}"
