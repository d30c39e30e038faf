"""Texts as values: every type that an answer can have, and the readers that recognise it.

`parse` returns all readings of a text, because a text alone does not tell them apart: `(2,3)` is a point and an
interval, `1,234` a number and a list. The comparison with the reference decides which one counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig

from lit_rlvr.rewards.answers.characters import plain_characters
from lit_rlvr.rewards.answers.find import normalise
from lit_rlvr.rewards.answers.units import BASES, CURRENCIES, MAGNITUDES, Dimension, read_numeral, read_unit

LONGEST = 2000
"""Longer texts are compared as text only."""


# ---- types ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Words, a name, an order or a code, in normalised form."""

    key: str


@dataclass(frozen=True)
class Number:
    """A constant. `places`: decimal places if it is written as a decimal, else None (exact)."""

    value: Any
    places: int | None = None


@dataclass(frozen=True)
class Quantity:
    """A number with a known unit, or the sum of several ("5 ft 3 in", `is_sum`, in base units)."""

    number: Number
    factor: Fraction
    dimension: Dimension
    is_sum: bool = False


@dataclass(frozen=True)
class Expression:
    """A formula with variables. `is_spelt`: letters side by side, which may be a word."""

    value: Any
    is_spelt: bool = False


@dataclass(frozen=True)
class Equation:
    """lhs = rhs as lhs - rhs, or an inequality in several variables with its sign turned to "<" or "\\\\le"."""

    difference: Any
    sign: str = "="


@dataclass(frozen=True)
class Series:
    """Items in brackets ("()", "[)", "{}", ...) or, with brackets "", separated by commas or "and"."""

    items: tuple[tuple[Reading, ...], ...]
    brackets: str = ""


@dataclass(frozen=True)
class Labelled:
    """Values with labels: `x=1, y=2`, `P(A)=0.3`, `Alice: 3`; a label may have several values (`x=1 or x=2`)."""

    values: dict[str, tuple[tuple[Reading, ...], ...]] = field(hash=False)


@dataclass(frozen=True)
class Region:
    """A set of real numbers as sorted intervals (start, end, is left open, is right open)."""

    intervals: tuple[tuple[Any, Any, bool, bool], ...]


@dataclass(frozen=True)
class Chain:
    """Names in an order, `A>B>C`: (relation, larger, smaller) of each neighbouring pair."""

    pairs: frozenset[tuple[str, str, str]]


@dataclass(frozen=True)
class Matrix:
    """A matrix or vector."""

    value: Any


@dataclass(frozen=True)
class Parts:
    """Numbers that only together have a meaning. `kind`: time, date, ratio, remainder, numeral (with its base)."""

    kind: str
    parts: tuple[Any, ...]


Reading = Text | Number | Quantity | Expression | Equation | Series | Labelled | Region | Chain | Matrix | Parts


# ---- clean LaTeX ------------------------------------------------------------------------------------------

_GROUPS = re.compile(r"(?<=\d)(?:\\[,;:! ]|\{,\}|\\?,\\!\s*|(?<![.\d]\d\d\d\d) )(?=\d{3}(?!\d))")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\\[,;:! ]|\{,\}|,\\!\s*| )\d{3})+(?![\d/])")
_STYLES = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|[Bb]igg?[lrm]?|large|Large|bf|rm|it|sf|tt|cal|textcolor\s*\{[^{}]*\}"
    r"|color\s*\{[^{}]*\}|[hv]?phantom\s*(?:\{[^{}]*\}|-?\w))(?![A-Za-z])"
)
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm|mbox|hbox|fbox|f?boxed|emph"
    r"|underline|operatorname\*?|ensuremath|textsc|pmb|cancel)\s*\{"
)
_REPLACED = {
    r"\\(?:lbrace|\{)(?![A-Za-z])": r"\\{", r"\\(?:rbrace|\})(?![A-Za-z])": r"\\}",
    r"\\(?:langle|lbrack)(?![A-Za-z])": lambda m: "(" if "angle" in m[0] else "[",
    r"\\(?:rangle|rbrack)(?![A-Za-z])": lambda m: ")" if "angle" in m[0] else "]",
    r"\\[dtc]frac(?![A-Za-z])": r"\\frac", r"\\[()\[\]]": " ", r"\\%|\bper ?cent\b|\bpercent(?:age)?\b": "%",
    r"\\(?:leq?q?(?:slant)?)(?![A-Za-z])|<=|=<": r"\\le ", r"\\(?:geq?q?(?:slant)?)(?![A-Za-z])|>=": r"\\ge ",
    r"\\lt(?![A-Za-z])": "<", r"\\gt(?![A-Za-z])": ">", r"\\(?:neq?|not\s*=)(?![A-Za-z])|!=": r"\\ne ",
    r"\\(?:approx|simeq|cong|doteq)(?![A-Za-z])|~=": r"\\approx ", r"\\(?:varnothing|O)(?![A-Za-z])": r"\\emptyset ",
    r"\\(?:mathbb|Bbb|mathbf)\s*\{?\s*R\s*\}?|\\(?:R|reals)(?![A-Za-z])|(?i:\ball real numbers\b)": r"\\mathbb{R}",
    r"\\(?:back)?slash(?![A-Za-z])|(?<=[\])}RZ])\s*\\(?![A-Za-z,;:! {}])": r"\\setminus ",
    r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])": r"^\\circ ",
    r"\\(?:l|c|d|v)dots(?![A-Za-z])|\.\.\.": r"\\dots ", r"\\(?:quad|qquad|thinspace|,|;|:|!|\s)": " ", r"~": " ",
    r"\\(?:rightarrow|longrightarrow|implies|Rightarrow)(?![A-Za-z])|-+>": r"\\to ", r"\\mid(?![A-Za-z])": "|",
    r"\\[lr]?vert(?![A-Za-z])": "|", r"\{,\}": ",", r"(?<=\d)\s*\^\s*\{?\s*(st|nd|rd|th)\s*\}?": r"\1",
    r"\s*\(?\s*(?:\\p?mod|\\bmod|\bmod)\s*\{?\s*\d+\s*\}?\s*\)?\s*$": "", r"\s*\^\s*": "^", r"\*\*(?=[\d({-])": "^",
    r"\\(?:ast|star)(?![A-Za-z])": "*", r"\\colon(?![A-Za-z])": ":", r"(?<=[\])])\s*U\s*(?=[\[(])": r"\\cup ",
}  # fmt: skip
_REPLACEMENTS = [(re.compile(pattern), new) for pattern, new in _REPLACED.items()]
_LEAD = re.compile(
    r"(?i)(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the|our|my)\s+)?(?:(?:final|correct)\s+)?(?:answers?|results?|"
    r"solutions?|values?)\s*(?:is|are|=|:)\s*|(?:is|are|equals?|approximately|approx\.?|about|roughly|exactly|only)\s+"
    r"|(?:\\approx|\\equiv(?=\s*\d+$)|=)\s*|\u7ea6"
)
_REMARK = re.compile(r"(?<=[\s\d}])\((?![^()]*\bmod\b)[^(),\\]*[A-Za-z]{2,}[^(),\\]*\)\s*$")
_OUTWARD = re.compile(r"(?:(?<=^)|(?<=\\cup )|(?<=\\in ))(?:(\])([^][]+,[^][]+)([][])|(\[)([^][]+,[^][]+)(\[))")
"""Intervals with brackets that look outwards where they are open: ]0,1[."""
_PARAMETER = re.compile(
    r"[,;]?\s*(?:(?:where|for|with|and)\s+)?(?:any\s+|all\s+)?[a-z]\s*(?:\\in\s*(?:\\mathbb\s*\{?\s*[ZNQ]\s*\}?|Z|N)(?:\^[+*])?"
    r"|is\s+an?y?\s+(?:arbitrary\s+)?(?:integer|constant|natural number)[a-z ]*)\s*$"
)
"""What says that a letter of the answer is any integer or constant."""
_ENDS = " \t\r\n.,;:"


def clean(text: str) -> str:
    """Return the text without what only changes how LaTeX looks: sizes, colours, fonts, spaces, delimiters."""
    text = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), _GROUPS.sub("", plain_characters(text).strip()))
    text = _unwrapped(_STYLES.sub(" ", text)).replace("\\\\", "\x00")  # the end of a matrix's row
    for pattern, new in _REPLACEMENTS:
        text = pattern.sub(new, text)
    text = text.replace("\x00", "\\\\")
    text = re.sub(r"\\\$", " USD ", re.sub(r"\*\*|__|`|\\\\\s*$", " ", text))
    text = text.replace("$", " ") if text.count("$") % 2 == 0 else re.sub(r"\$(?=\s*[-\d.])", " USD ", text)
    text = _OUTWARD.sub(_inward, _trimmed(text))
    text = _PARAMETER.sub("", text) or text
    text = re.sub(r"^(?i:minus|negative)\s+(?=[\d\\(])", "-", text)
    while lead := _LEAD.match(text):
        text = _trimmed(text[lead.end() :])
    if text[:1] == "{" and _closing(text, 0) == len(text) - 1 and not _split(text[1:-1], _COMMAS)[1:]:
        text = _trimmed(text[1:-1])
    return text if (remark := _REMARK.search(text)) is None or not remark.start() else _trimmed(text[: remark.start()])


def _inward(match: re.Match[str]) -> str:
    return f"({match[2]}{')' if match[3] == '[' else ']'}" if match[1] else f"[{match[5]})"


def _trimmed(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip(_ENDS[:4])
    return text.rstrip(_ENDS + "\\").strip() if not text.endswith("\\dots") else text


def _unwrapped(text: str) -> str:
    """Return the text with the contents of `\\text{...}` and its like, with spaces around them, in their place."""
    while (match := _WRAPPED.search(text)) is not None:
        end = _closing(text, match.end() - 1)
        inside = text[match.end() : end if end > 0 else len(text)]
        text = f"{text[: match.start()]} {inside} {text[end + 1 :] if end > 0 else ''}"
    return text


_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def _closing(text: str, start: int) -> int:
    """Return where the bracket at `start` closes, counting brackets of its kind; -1 if nowhere."""
    opening, closing, depth = text[start], _BRACKETS[text[start]], 0
    for position in range(start, len(text)):
        depth += (text[position] == opening) - (text[position] == closing)
        if not depth:
            return position
    return -1


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split at separators that stand outside brackets; brackets of intervals need not match."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        match = separator.match(text, position) if depth == 0 else None
        if match and match.end() > position:
            parts.append(text[start:position])
            start = position = match.end()
            continue
        depth += character in "([{"
        depth -= character in ")]}" and depth > 0
        position += 1
    return [*parts, text[start:]]


# ---- readings ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def parse(text: str) -> tuple[Reading, ...]:
    """Return all readings of a text, as text first."""
    key = normalise(plain_characters(text)) or normalise(text)
    found: list[Reading] = [Text(key)] if key else []
    if article := re.match(r"(?:the|an?) (?=[a-z]{3})", key):
        found.append(Text(key[article.end() :]))
    cleaned = clean(text) if len(text) <= LONGEST else ""
    if cleaned:
        found += [Text(normalise(cleaned)), *_read(cleaned, 0)]
    return tuple(dict.fromkeys(found)) if not any(isinstance(v, Labelled | Matrix) for v in found) else tuple(found)


def readings(text: str, depth: int) -> tuple[Reading, ...]:
    """Return the readings of a part of a text that has been cleaned."""
    text = _trimmed(text)
    return (Text(normalise(text)), *_read(text, depth)) if text else ()


_OPTION = re.compile(r"\(([A-J])\)[.:]?\s*(\S.*)|([A-J])[).:]\s+(\S.*)")
_COMMAS = re.compile(r"\s*(?:[,;]|\\\\)\s*(?:(?:and|or)\b\s*)?|\s*(?:\band\b|\bor\b|&|\\(?:or|and|land|lor)(?![A-Za-z]))\s*")


def _read(text: str, depth: int) -> list[Reading]:
    """Return what a cleaned text means besides its words."""
    if depth > 6 or not text:
        return []
    option = _OPTION.fullmatch(text)
    if option:
        return [Text((option[1] or option[3]).lower()), *_read(_trimmed(option[2] or option[4]), depth + 1)]
    for reader in (_parts, _number, _quantity):
        if found := reader(text):
            return [*found, *_as_list(text, depth)]
    if re.fullmatch(r"\\emptyset|\\\{\s*\\\}", text):
        return [Series((), "{}")]
    if re.fullmatch(r"\(?-?\s*\\infty,\s*\+?\s*\\infty\)?|\\mathbb\{R\}", text):
        return [Region(((-sympy.oo, sympy.oo, True, True),))]
    if "\\begin" in text:
        return _formula(text)
    for read in (_list, _set_operations, _relation, _bracketed, _plus_minus):
        if values := read(text, depth):
            return values
    return _formula(text)


def _as_list(text: str, depth: int) -> list[Reading]:
    """Return `1,234` as a list too."""
    return _list(text, depth) if re.fullmatch(r"\d+(?:,\d+)+", text) else []


# ---- times, dates, ratios, remainders, numerals -----------------------------------------------------------

_TIME = re.compile(r"(\d{1,2})\s?:\s?(\d{2})(?:\s?:\s?(\d{2}))?\s*(?:([AaPp])\.?\s*[Mm]\.?)?|(\d{1,2})\s*([AaPp])\.?\s*[Mm]\.?")
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_MONTH = r"(?P<month>(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*)\.?"
_DATES = [
    re.compile(pattern)
    for pattern in (
        r"(?P<year>\d{4})[-/](?P<number>\d{1,2})[-/](?P<day>\d{1,2})",
        rf"{_MONTH}\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{{4}}))?",
        rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:\s+of)?\s+{_MONTH},?(?:\s+(?P<year>\d{{4}}))?",
        r"(?P<year>\d{4})\u5e74(?P<number>\d{1,2})\u6708(?P<day>\d{1,2})\u65e5",
    )
]
_REMAINDER = re.compile(r"(\d+)\s*(?:[rR]|(?i:rem\.?|remainder)(?:\s+of)?)\s*(\d+)")
_NUMERAL = re.compile(
    r"\(?([0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+)?)\)?\s*(?:_\s*\{?\s*\(?([0-9]+|[a-z]+)\)?\s*\}?|\s(?:in\s+)?base\s*-?\s*(\d+|[a-z]+))"
)


def _parts(text: str) -> list[Reading]:
    if match := _TIME.fullmatch(text):
        hour, half = int(match[1] or match[5]), (match[4] or match[6] or "").lower()
        if hour < 24 and int(match[2] or 0) < 60:
            return [Parts("time", (hour, int(match[2] or 0), int(match[3] or 0), half))]
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            given = match.groupdict()
            name = (given.get("month") or "")[:3].lower()
            month = _MONTHS.index(name) + 1 if name else int(given["number"])
            if 1 <= month <= 12 and 1 <= int(given["day"]) <= 31:
                return [Parts("date", (int(given["year"] or 0), month, int(given["day"])))]
    if match := _REMAINDER.fullmatch(text):
        return [Parts("remainder", (int(match[1]), int(match[2])))]
    if match := _NUMERAL.fullmatch(text):
        name = match[2] or match[3]
        base = int(name) if name.isdigit() and len(name) < 3 else BASES.get(name, 0)
        if 2 <= base <= 36 and all(int(digit, 36) < base for digit in match[1] if digit != "."):
            return [Parts("numeral", (match[1].lower(), base))]
    terms = re.split(r"\s*:\s*|\s+to\s+", text)
    if len(terms) > 1 and all(re.search(r"\d|\\|^[a-z]$", term) for term in terms):
        values = [_constant(_trimmed(term)) for term in terms]
        if all(value is not None for value in values):
            return [Parts("ratio", tuple(value.value for value in values if value is not None))]
    return []


# ---- numbers ----------------------------------------------------------------------------------------------

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})*,\d{3}|\d+)"
_LITERAL = re.compile(
    rf"(?P<sign>(?:[-+]\s*)*)(?P<whole>{_DIGITS})?(?:\.(?P<decimals>\d*))?"
    r"(?:\s*(?:[eE]|(?:\*|\\times|\\cdot|x)\s*10\s*\^)\s*\{?\(?(?P<power>[-+]?\d{1,5})\)?\}?)?(?:st|nd|rd|th)?"
)
_MIXED = re.compile(
    r"(?P<sign>-?)\s*(?:(?P<whole>\d+)(?:\s+|\s*(?=\\)|\s+and\s+))?"
    r"(?:(?P<n>\d+)\s*/\s*(?P<d>\d+)|\\frac\s*(?:\{\s*(?P<n2>\d+)\s*\}|(?P<n3>\d))\s*(?:\{\s*(?P<d2>\d+)\s*\}|(?P<d3>\d)))"
)
_REPEATING = re.compile(
    r"(?P<sign>-?)(?P<whole>\d*)\.(?P<fixed>\d*)(?:\\(?:overline|bar|overset\{\\frown\})\s*\{?(?P<bar>\d+)\}?"
    r"|\\dot\s*\{?(?P<first>\d)\}?(?:(?P<between>\d*)\\dot\s*\{?(?P<last>\d)\}?)?|\((?P<round>\d+)\)|(?P<dots>\s*\\dots))"
)
_RATE = re.compile(r"(.*\S)\s*(%|\u2030)")


def _number(text: str) -> list[Reading]:
    """Read a literal number; a percentage is its fraction as well as the number before the sign."""
    if rate := _RATE.fullmatch(text):
        number = _constant(rate[1])
        if number is None:
            return []
        digits = 2 if rate[2] == "%" else 3
        places = None if number.places is None else number.places + digits
        return [Number(number.value / sympy.Integer(10) ** digits, places), *([number] if digits == 2 else [])]
    number = _literal(text)
    if number is None:
        return []
    return [number, *_formula(text)] if "e" in text and text[0].isdigit() else [number]  # 2e - 1 is a formula too


def _literal(text: str) -> Number | None:
    if len(text) > 400:
        return None
    if match := _LITERAL.fullmatch(text):
        whole, decimals, power = match["whole"] or "", match["decimals"] or "", int(match["power"] or 0)
        if (whole or decimals) and abs(power) <= 5000:
            value = sympy.Rational(int(whole.replace(",", "") + decimals or 0), 1) * sympy.Integer(10) ** (
                power - len(decimals)
            )
            negative = match["sign"].count("-") % 2
            places = len(decimals) - power if decimals.strip("0") or power else None
            return Number(-value if negative else value, places)
    if match := _MIXED.fullmatch(text):
        numerator, denominator = (next(filter(None, match.group(n, f"{n}2", f"{n}3"))) for n in "nd")
        if int(denominator) and (not match["whole"] or int(numerator) < int(denominator)):
            value = sympy.Rational(int(numerator), int(denominator)) + int(match["whole"] or 0)
            return Number(-value if match["sign"] else value)
    if match := _REPEATING.fullmatch(text):
        fixed, block = match["fixed"], match["bar"] or match["round"] or match["first"] or ""
        if match["last"]:
            block += (match["between"] or "") + match["last"]
        if match["dots"]:
            cycle = re.search(r"(\d+?)\1+$", fixed)
            if cycle is None:
                return None
            fixed, block = fixed[: cycle.start()], cycle[1]
        value = sympy.Rational(int((match["whole"] or "0") + fixed + block) - int((match["whole"] or "0") + fixed), 1)
        value /= (10 ** len(block) - 1) * sympy.Integer(10) ** len(fixed)
        return Number(-value if match["sign"] else value)
    if len(text) == 1 and unicodedata.category(text) == "Lo" and (value := unicodedata.numeric(text, -1)) >= 0:
        return Number(sympy.Integer(int(value)))
    spelt = read_numeral(text) if re.fullmatch(r"[A-Za-z][A-Za-z\s-]*", text) else None
    return None if spelt is None else Number(sympy.Rational(spelt.numerator, spelt.denominator))


def _constant(text: str) -> Number | None:
    """Read a number: a literal or a formula without variables."""
    if (number := _literal(text)) is not None:
        return number
    found = _formula(text)
    return next((value for value in found if isinstance(value, Number)), None)


# ---- numbers with words -----------------------------------------------------------------------------------

_BOUNDARY = re.compile(r"(?<=[\d}).!|])\s*(?=[A-Za-z/$\u00a2-\u00a5\u20a0-\u20bf\u3000-\u9fff\uac00-\ud7a3^-])|(?<=pi)\s+(?=[A-Za-z])")
_FUNCTIONS = (
    "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan asin acos atan log ln lg exp sqrt det gcd lcm max min "
    "lim mod deg dim ker arg abs"
).split()
_NAMES = ["alpha", "beta", "gamma", "delta", "theta", "lambda", "sigma", "omega", "phi", "rho", "mu", "pi", "frac"]
_LABEL = re.compile(
    rf"(?!(?:{'|'.join(_FUNCTIONS + _NAMES)}|or|and|not|to|plus|minus|times)\b)(?:-?[A-Za-z]{{2,}}[A-Za-z.'/]*|[ab]|of|per|/)(?:[\s-]+[A-Za-z.'/]+){{0,7}}(?:\^\{{?\d\}}?)?"
    r"|[\u3000-\u9fff\uac00-\ud7a3]+"
)
_PIECE = re.compile(
    r"(?P<number>\d+(?:\.\d+)?(?:\s+\d+/\d+|/\d+)?)\s*(?P<unit>[A-Za-z]+\.?|'{1,2}|\"|\u5c0f\u65f6|\u5206\u949f?|\u79d2)"
    r"\s*(?:,|and\b)?\s*"
)
_MARKS = {
    "'": "ft", "''": "in", '"': "in", "pound": "lb", "pounds": "lb",
    "\u5c0f\u65f6": "h", "\u5206": "min", "\u5206\u949f": "min", "\u79d2": "s",
}  # fmt: skip


def _quantity(text: str) -> list[Reading]:
    """Read a number with a currency before it, or with magnitudes, a unit or other words behind it."""
    if total := _sum_of_units(text):
        return [total]
    before = re.match(rf"([-+]?)\s*({CURRENCIES})(?![A-Za-z])\s*", text)
    if before:
        unit = read_unit("usd" if before[2] in ("$", "US$") else before[2].removesuffix("."))
        inside = _read_amount(before[1] + text[before.end() :])
        return [Quantity(v, *unit) if unit and isinstance(v, Number) else v for v in inside]
    return _read_amount(text)


def _read_amount(text: str) -> list[Reading]:
    number = _literal(text)
    if number is not None:
        return [number]
    for boundary in _BOUNDARY.finditer(text):
        head, tail, is_apart = text[: boundary.start()], text[boundary.end() :], bool(boundary[0])
        word = re.match(r"[A-Za-z]+|[\u4e00-\u9fff]", tail)
        factor = MAGNITUDES.get(word[0], 0) if word else 0
        if factor and word and not (is_apart and len(word[0]) == 1 and word[0].isascii()):
            number, rest = _constant(_trimmed(head)), tail[word.end() :].strip(" -")
            if number is not None:
                scaled = Number(number.value * factor, None)
                if not rest:
                    return [scaled]
                unit = read_unit(rest.removeprefix("of").strip())
                if unit:
                    return [Quantity(scaled, *unit)]
                if _LABEL.fullmatch(rest) or (deeper := MAGNITUDES.get(rest.split()[0], 0)) == 0:
                    return [scaled] if _LABEL.fullmatch(rest) else []
                return [Number(scaled.value * deeper)]
        if tail.startswith("^") and re.search(r"\\[a-z]{3}", head.replace("\\frac", "")):
            continue  # the sine of an angle, not degrees
        unit = read_unit(tail) if is_apart or len(re.sub(r"[^A-Za-z\\$\u00a2-\uffff]", "", tail)) > 1 else None
        if unit and (number := _constant(_trimmed(head))) is not None:
            found: list[Reading] = [Quantity(number, *unit)]
            if unit[1] == (("deg", 1),):
                found.append(Number(number.value * sympy.pi / 180))
            return found
        if _LABEL.fullmatch(tail) and (number := _constant(_trimmed(head))) is not None:
            return [number]
    return []


def _sum_of_units(text: str) -> Quantity | None:
    """Read "5 ft 3 in" or "2 hours and 15 min": at least two units of one dimension, from large to small."""
    position, pieces = 0, []
    while match := _PIECE.match(text, position):
        unit = read_unit(_MARKS.get(match["unit"], match["unit"]))
        number = _literal(match["number"])
        if unit is None or number is None:
            return None
        pieces.append((number.value, *unit))
        position = match.end()
    factors = [factor for _, factor, _ in pieces]
    if position < len(text) or len(pieces) < 2 or len({dimension for _, _, dimension in pieces}) > 1:
        return None
    if any(large <= small for large, small in zip(factors, factors[1:], strict=False)):
        return None
    total = sum(value * sympy.Rational(factor.numerator, factor.denominator) for value, factor, _ in pieces)
    return Quantity(Number(total), Fraction(1), pieces[0][2], is_sum=True)


# ---- lists, brackets, sets --------------------------------------------------------------------------------

_OR = re.compile(r"\bor\b|\\or(?![A-Za-z])|\\lor(?![A-Za-z])|\\cup|\|\|")


def _list(text: str, depth: int) -> list[Reading]:
    """Read items with commas, semicolons, "and" or "or" between them, with their labels if they have some."""
    parts = [_trimmed(part) for part in _split(text, _COMMAS)]
    if len(parts) < 2:
        return []
    parts = [part for part in parts if part]
    if len(parts) == 1:
        return _read(parts[0], depth + 1)
    items = [readings(part, depth + 1) for part in parts]
    relations = [next((v for v in item if isinstance(v, Labelled | Region | Equation)), None) for item in items]
    if all(isinstance(v, Labelled) for v in relations):
        merged: dict[str, tuple[tuple[Reading, ...], ...]] = {}
        for v in relations:
            for label, values in v.values.items():  # type: ignore[union-attr]
                merged[label] = merged.get(label, ()) + values
        return [Labelled(merged)]
    regions = [next((v for v in item if isinstance(v, Region)), None) for item in items]
    if all(v is not None for v in regions) and all(_has_relation(part) for part in parts):
        sets = [_sympy_set(v) for v in regions if v is not None]
        joined = sympy.Union(*sets) if _OR.search(text) else sympy.Intersection(*sets)
        return _region(joined)
    first = relations[0]
    if isinstance(first, Labelled) and len(first.values) == 1 and not any(relations[1:]):
        ((label, values),) = first.values.items()
        return [Labelled({label: (*values, *items[1:])})]
    flat: list[tuple[Reading, ...]] = []
    for item in items:
        both = next((v for v in item if isinstance(v, Series) and v.brackets == ""), None)
        flat += both.items if both is not None else [item]
    return [Series(tuple(flat))]


def _bracketed(text: str, depth: int) -> list[Reading]:
    """Read items in brackets: a tuple, a set, an interval."""
    if text.startswith("\\{") and text.endswith("\\}"):
        opening, inside, closing = "{", text[2:-2], "}"
    elif len(text) > 2 and text[0] in "([{" and text[-1] in ")]}":
        opening, inside, closing = text[0], text[1:-1], text[-1]
    else:
        return []
    if text[0] in _BRACKETS and _BRACKETS[text[0]] == closing and _closing(text, 0) != len(text) - 1:
        return []
    parts = [_trimmed(part) for part in _split(inside, re.compile(r"\s*[,;]\s*"))]
    if opening == "{" and (match := re.match(r"\s*[a-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:]\s*", inside)):
        return _read(_trimmed(inside[match.end() :]), depth + 1)
    if len(parts) < 2 and opening != "{":
        return _read(_trimmed(inside), depth + 1) if opening + closing in ("()", "[]") else []
    brackets = opening + closing
    found: list[Reading] = [Series(tuple(readings(part, depth + 1) for part in parts if part), brackets)]
    if len(parts) == 2 and opening != "{":
        ends = [_constant(re.sub(r"^\+\s*", "", part)) for part in parts]
        if all(end is not None and end.value.is_extended_real for end in ends):
            start, end = (e.value for e in ends if e is not None)
            if (start < end) == True:  # noqa: E712 (a sympy relation)
                found += _region(sympy.Interval(start, end, brackets[0] == "(", brackets[1] == ")"))
    return found


def _set_operations(text: str, depth: int) -> list[Reading]:
    """Read unions, intersections and differences of sets of real numbers."""
    for command, combine in (
        (r"\\cup", sympy.Union), (r"\\setminus|\\backslash|(?<=\})\s*-\s*(?=\\\{)", sympy.Complement),
        (r"\\cap", sympy.Intersection),
    ):  # fmt: skip
        parts = _split(text.replace("\\{", "{").replace("\\}", "}"), re.compile(rf"\s*(?:{command})(?![A-Za-z])\s*"))
        if len(parts) > 1:
            sets = [_as_set(_trimmed(part), depth + 1) for part in parts]
            return _region(combine(*sets)) if all(s is not None for s in sets) else []
    return []


def _as_set(text: str, depth: int) -> Any:
    text = re.sub(r"^\{(.*)\}$", r"\\{\1\\}", text)
    for value in _read(text, depth):
        if isinstance(value, Region):
            return _sympy_set(value)
        if isinstance(value, Series) and value.brackets == "{}":
            numbers = [next((v.value for v in item if isinstance(v, Number)), None) for item in value.items]
            return sympy.FiniteSet(*numbers) if None not in numbers else None
    return None


def _sympy_set(region: Region) -> Any:
    return sympy.Union(*(sympy.Interval(*interval) for interval in region.intervals))


def _region(found: Any) -> list[Reading]:
    """Return a set of real numbers as intervals; [] if it is something else."""
    if found is sympy.S.EmptySet:
        return [Series((), "{}")]
    intervals: list[tuple[Any, Any, bool, bool]] = []
    for part in found.args if isinstance(found, sympy.Union) else (found,):
        if part is sympy.S.Reals:
            part = sympy.Interval(-sympy.oo, sympy.oo)
        if isinstance(part, sympy.Interval):
            intervals.append((part.start, part.end, bool(part.left_open), bool(part.right_open)))
        elif isinstance(part, sympy.FiniteSet):
            intervals += [(value, value, False, False) for value in part]
        else:
            return []
    return [Region(tuple(sorted(intervals, key=lambda interval: interval[0])))]


# ---- equations and inequalities ---------------------------------------------------------------------------

_RELATION = re.compile(r"\s*(\\(?:le|ge|ne|approx|in|to|equiv)(?![A-Za-z])|[<>=])\s*")
_NAME = re.compile(
    r"\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?'*|[A-Za-z]\w*'*\s*(?:_(?:\{[^{}]*\}|\w))?\s*\(.*\)|\|[A-Z]+\||\\angle\s*[A-Z]+"
    r"|\\(?:overline|vec|hat|widehat|bar|triangle|mathrm|mathbb)\s*\{?\s*\w+\s*\}?|[A-Za-z][A-Za-z ]*|m\s*\\angle\s*[A-Z]+"
)
_COLON = re.compile(r"((?:[A-Za-z][\w']*\s*)+):\s*(\S.*)")
_POINT = re.compile(r"([A-Z](?:'|_\{?\w+\}?)*)\s*(\(.*,.*\))")


def _has_relation(text: str) -> bool:
    return len(_split(text, _RELATION)) > 1


def _sides(text: str) -> tuple[list[str], list[str]]:
    """Return the sides of a chain of relations and the relations between them."""
    sides = _split(text, _RELATION)
    signs, rest = [], text
    for side in sides[:-1]:
        rest = rest[rest.index(side) + len(side) :]
        match = _RELATION.match(rest)
        assert match is not None
        signs.append(match[1])
        rest = rest[match.end() :]
    return [_trimmed(side) for side in sides], signs


def _relation(text: str, depth: int) -> list[Reading]:
    """Read labels, equations, inequalities and orders."""
    if match := _POINT.fullmatch(text) or _COLON.fullmatch(text):
        return [Labelled({_label(match[1]): (readings(match[2], depth + 1),)})]
    if not _has_relation(text):
        return []
    sides, signs = _sides(text)
    while len(signs) > 1 and signs[-1] == "\\approx":  # an approximation of what stands before it
        sides, signs = sides[:-1], signs[:-1]
    if not all(sides):
        return []
    if all(sign in ("=", "\\approx", "\\equiv") for sign in signs):
        return _equal_sides(sides, depth)
    if signs == ["\\in"] and _NAME.fullmatch(sides[0]):
        return [*_read(sides[1], depth + 1), Labelled({_label(sides[0]): (readings(sides[1], depth + 1),)})]
    if "=" not in signs and all(re.fullmatch(r"\\?[A-Za-z]+(?:_\{?\w+\}?|\(\w+\))?", side) for side in sides):
        pairs = zip(sides, signs, sides[1:], strict=False)
        return [Chain(frozenset(_oriented(*pair) for pair in pairs))]
    sides = [re.sub(r"^\\?[A-Za-z]+\s*\([A-Za-z]\)$", "x", side) for side in sides]  # g(x) is an unknown of its own
    sets = [_solved(left, sign, right) for left, sign, right in zip(sides, signs, sides[1:], strict=False)]
    if all(s is not None for s in sets):
        return _region(sympy.Intersection(*sets))
    formulas = [_sympy_of(side) for side in sides]
    if len(signs) > 1 or signs[0] not in "<>\\le\\ge\\ne" or not all(isinstance(f, sympy.Expr) for f in formulas):
        return []
    (left, right), sign = formulas, signs[0]
    return [Equation(right - left, {">": "<", "\\ge": "\\le"}[sign])] if sign in (">", "\\ge") else [Equation(left - right, sign)]


def _oriented(left: str, sign: str, right: str) -> tuple[str, str, str]:
    return {"<": (">", right, left), "\\le": ("\\ge", right, left)}.get(sign, (sign, left, right))


def _label(text: str) -> str:
    return re.sub(r"[\s{}\\]|(?:^the )", "", text).casefold()


def _equal_sides(sides: Sequence[str], depth: int) -> list[Reading]:
    first, last = sides[0], sides[-1]
    if re.fullmatch(r"\(.*,.*\)", first) and re.fullmatch(r"\(.*,.*\)", last):
        names, values = (_split(side[1:-1], re.compile(r"\s*,\s*")) for side in (first, last))
        if len(names) == len(values) and all(_NAME.fullmatch(name.strip()) for name in names):
            return [
                Labelled({_label(n): (readings(v, depth + 1),) for n, v in zip(names, values, strict=True)}),
                *_read(last, depth + 1),
            ]
    found: list[Reading] = []
    if _NAME.fullmatch(first):
        found.append(Labelled({_label(first): (readings(last, depth + 1),)}))
    elif len(sides) == 2 and _NAME.fullmatch(last) and not _NAME.fullmatch(first):
        found.append(Labelled({_label(last): (readings(first, depth + 1),)}))
    elif any(isinstance(v, Number) for v in _formula(first)) or len(sides) > 2:
        return _read(last, depth + 1)
    formulas = [_sympy_of(side) for side in (first, last)]
    if len(sides) == 2 and all(isinstance(f, sympy.Expr) for f in formulas):
        found.append(Equation(formulas[0] - formulas[1]))
    return found


def _solved(left: str, sign: str, right: str) -> Any:
    """Return the real solutions of one relation in one variable; None if they are unknown."""
    sides = [_sympy_of(side) for side in (left, right)]
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return None
    difference = sides[0] - sides[1]
    free = difference.free_symbols
    if len(free) != 1:
        return None
    x = sympy.Symbol("x", real=True)
    difference = sympy.expand(difference.subs(free.pop(), x))
    slope = sympy.diff(difference, x)
    if sign == "\\ne":
        zeros = sympy.solveset(difference, x, sympy.S.Reals)
        return sympy.Complement(sympy.S.Reals, zeros) if isinstance(zeros, sympy.FiniteSet) else None
    if slope.is_number and slope.is_real and slope != 0:
        zero = -difference.subs(x, 0) / slope
        is_below = (sign in ("<", "\\le")) == bool(slope > 0)
        is_open = sign in "<>"
        return sympy.Interval(-sympy.oo, zero, True, is_open) if is_below else sympy.Interval(zero, sympy.oo, is_open)
    relation = {"<": sympy.Lt, ">": sympy.Gt, "\\le": sympy.Le, "\\ge": sympy.Ge}.get(sign)
    if relation is None or not difference.is_polynomial(x) or sympy.degree(difference, x) > 4:
        return None
    return sympy.solve_univariate_inequality(relation(difference, 0), x, relational=False)


def _plus_minus(text: str, depth: int) -> list[Reading]:
    """Read `a \\pm b` as a - b and a + b."""
    if not re.search(r"\\[pm][pm](?![A-Za-z])", text):
        return []
    upper = re.sub(r"\\mp(?![A-Za-z])\s*", "-", re.sub(r"\\pm(?![A-Za-z])\s*", "+", text))
    lower = re.sub(r"\\mp(?![A-Za-z])\s*", "+", re.sub(r"\\pm(?![A-Za-z])\s*", "-", text))
    return [Series(tuple(readings(form.removeprefix("+"), depth + 1) for form in (upper, lower)))]


# ---- formulas ---------------------------------------------------------------------------------------------

_CONFIG = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_STOPWORDS = "is it of to in at on by or an as be so we he no if the and are was for has not but you she his her".split()
_CODE = re.compile(r"[A-Z][A-Za-z0-9]*(?:_\{?\w+\}?[A-Za-z0-9]*)*")
_TIDIED = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"(\d+)\.(\d+)", lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}"),
        (r"(?<![\d}])\.(\d+)", lambda m: rf"\frac{{{int(m[1])}}}{{{10 ** len(m[1])}}}"),
        (r"\*", r"\\cdot "),
        (rf"(?<![\\A-Za-z])({'|'.join(_FUNCTIONS)}|pi|theta|alpha|beta)(?![A-Za-z])", r"\\\1"),
        (r"\\lg(?![A-Za-z])", r"\\log_{10}"), (r"\\log\s*_\s*\{?\s*e\s*\}?", r"\\ln"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"), (r"\\sqrt\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\[(\w+)\]\s*(\d|[A-Za-z])", r"\\sqrt[\1]{\2}"),
        (r"\\(frac|binom)\s*(\d|[A-Za-z]|\\[a-z]+)\s*(\d|[A-Za-z](?![A-Za-z])|\\pi)", r"\\\1{\2}{\3}"),
        (r"\\(frac|binom)\s*(\d|[A-Za-z]|\\[a-z]+)\s*\{", r"\\\1{\2}{"),
        (r"\\(frac|binom)\s*(\{(?:[^{}]|\{[^{}]*\})*\})\s*(\d|[A-Za-z]|\\[a-z]+)", r"\\\1\2{\3}"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"), (r"\^\s*(-?\d+)", r"^{\1}"),
        (r"(?<![\d}])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", r"(\1+\\frac{\2}{\3})"),
        (r"(\d+)\s*\^\s*\\circ", r"(\1\\cdot\\frac{\\pi}{180})"),
        (r"(\d+)\s*\^\{\\circ\s*\}", r"(\1\\cdot\\frac{\\pi}{180})"),
        (r"\\exp\s*\(([^()]*)\)", r"e^{\1}"), (r"\\mathbb\{[A-Z]\}", r"\\unknown"),
    )
]  # fmt: skip


def _formula(text: str) -> list[Reading]:
    """Read a formula: a constant, an expression with variables or a matrix."""
    if _CODE.fullmatch(text) and len(re.sub(r"_.*", "", text)) > 1:
        return []  # a word or a code, not a product of its letters
    is_spelt = re.fullmatch(r"[a-z]{2,}", text) is not None
    if is_spelt and len(text) > 3 and set(text) - set("xyz"):
        return []
    value = _sympy_of(text)
    if value is None:
        return []
    if isinstance(value, sympy.MatrixBase):
        return [Matrix(value)]
    if value.free_symbols:
        return [Expression(value, is_spelt and bool(set(text) - set("xyz")))]
    return [Number(value)] if not is_spelt else []


@lru_cache(maxsize=4096)
def _sympy_of(text: str) -> Any:
    """Return the sympy object of a LaTeX or plain formula; None if it is none."""
    text = _trimmed(text)
    if text.replace(" ", "") in ("\\infty", "+\\infty"):
        return sympy.oo
    if text.replace(" ", "") == "-\\infty":
        return -sympy.oo
    if not text or _is_wordy(text) or re.search(r"[^\x00-\x7f]|\\dots|[=<>&;:?\"@#$%]", re.sub(r"\\begin.*\\end", "", text)):
        return None
    for pattern, new in _TIDIED:
        text = pattern.sub(new, text)
    try:
        value = latex2sympy(text, conversion_config=_CONFIG)
        if isinstance(value, sympy.MatMul | sympy.MatAdd | sympy.Sum | sympy.Product | sympy.Integral | sympy.Limit):
            value = value.doit()
        if isinstance(value, sympy.Expr):
            value = _settled(value)
    except MemoryError:
        raise
    except Exception:  # the parser and sympy raise anything on odd texts, which then are no formula
        return None
    return value if isinstance(value, sympy.MatrixBase) or type(value) is not sympy.Matrix and isinstance(value, sympy.Expr) else None


def _settled(value: Any) -> Any:
    """Return an expression with `i` as the imaginary unit and unevaluated parts computed."""
    value = value.replace(lambda part: isinstance(part, sympy.UnevaluatedExpr), lambda part: part.args[0])
    return value.subs(sympy.Symbol("i"), sympy.I) if sympy.Symbol("i") in value.free_symbols else value


def _is_wordy(text: str) -> bool:
    """Return True for a text with words, which would become products of their letters."""
    if "\\begin" in text:
        return False
    words = [w for w in _WORD.findall(re.sub(r"\\[A-Za-z]+", " ", text)) if w not in _FUNCTIONS + _NAMES]
    return any(len(w) > 3 or w.lower() in _STOPWORDS or (len(w) == 3 and not (w.islower() or w.isupper())) for w in words)


def all_readings(values: Sequence[Reading]) -> Iterator[Reading]:
    """Yield values and what stands in their labels."""
    for value in values:
        yield value
        if isinstance(value, Labelled) and len(value.values) == 1:
            for items in value.values.values():
                if len(items) == 1:
                    yield from all_readings(items[0])
                else:
                    yield Series(items)


def describe(value: Reading) -> str:
    """Describe a reading in the words of its type: "number 1/2", "interval [0, oo)"."""
    match value:
        case Text(key):
            return f"text {key!r}"
        case Number(number, places):
            return f"number {number}" + ("" if places is None else f" ({places} decimals)")
        case Quantity(number, factor, dimension):
            unit = " ".join(base if power == 1 else f"{base}^{power}" for base, power in dimension)
            return f"quantity {number.value} x {factor} {unit}"
        case Expression(formula) | Matrix(formula):
            return f"{type(value).__name__.lower()} {formula}"
        case Equation(difference, sign):
            return f"equation {difference} {sign} 0"
        case Series(items, brackets):
            inside = ", ".join(describe(item[-1]) for item in items)
            return f"{'list' if not brackets else 'set' if brackets == '{}' else 'tuple'} {brackets[:1]}{inside}{brackets[1:]}"
        case Labelled(values):
            return ", ".join(f"{k} = {' or '.join(describe(item[-1]) for item in v)}" for k, v in values.items())
        case Region(intervals):
            parts = [f"{'[('[a]}{start}, {end}{'])'[b]}" for start, end, a, b in intervals]
            return f"real numbers {' or '.join(parts)}"
        case Chain(pairs):
            return "order " + ", ".join(f"{larger} {sign} {smaller}" for sign, larger, smaller in sorted(pairs))
        case Parts(kind, parts):
            return f"{kind} {':'.join(map(str, parts))}"
