"""Numbers: literals, with words and units, and those of several parts (times, dates, ratios, numerals)."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import sympy

from lit_rlvr.answers.characters import ALPHABET
from lit_rlvr.answers.formulas import FUNCTIONS, LETTER_NAMES, read_formula
from lit_rlvr.answers.latex import trim
from lit_rlvr.answers.retracted import BOUND_BEHIND, VERB_LAST
from lit_rlvr.answers.units import BASES, CURRENCIES, MAGNITUDES, read_chinese, read_numeral, read_unit
from lit_rlvr.answers.values import Number, Parts, Percentage, Quantity, Reading

_TIME = re.compile(
    r"(\d{1,2})\s?:\s?(\d{2})(?:\s?:\s?(\d{2}))?\s*(?:([AaPp])\.?\s*[Mm]\.?)?|(\d{1,2})\s*([AaPp])\.?\s*[Mm]\.?"
)
_TIME_WITH_H = re.compile(r"(\d{1,2})\s?h\s?(\d{2})")
"""A time as French writes it: "15 h 45"."""
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
MONTH = (
    r"(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)(?![A-Za-z])\.?"
)
"""The name of a month or its abbreviation, and no word that begins like one: "marbles", "decks"."""
_MONTH = rf"(?P<month>{MONTH})"
_DATES = [
    re.compile(pattern)
    for pattern in (
        r"(?P<year>\d{4})[-/](?P<number>\d{1,2})[-/](?P<day>\d{1,2})",
        rf"{_MONTH}\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{{4}}))?",
        rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:\s+of)?\s+{_MONTH},?(?:\s+(?P<year>\d{{4}}))?",
        r"(?P<number>\d{1,2})/(?P<day>1[3-9]|2\d|3[01])/(?P<year>\d{4})",
        r"(?P<day>1[3-9]|2\d|3[01])[/.](?P<number>\d{1,2})[/.](?P<year>\d{4})",
        r"(?P<year>\d{4})\u5e74(?P<number>\d{1,2})\u6708(?P<day>\d{1,2})\u65e5",
    )
]
_REMAINDER = re.compile(r"(\d+)\s*(?:[rR]|(?i:rem\.?|remainder)(?:\s+of)?)\s*(\d+)")
_RESIDUE = re.compile(
    r"(?:[a-z]\s*(?:\\equiv|=)\s*)?(-?\d+)\s*\(?\s*(?:\\(?:p|b)?mod(?![A-Za-z])|\bmod\b)\s*\{?\s*(\d+)\s*\}?\s*\)?"
)
_NUMERAL = re.compile(
    r"\(?([0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+)?)\)?\s*(?:_\s*\{?\s*\(?(-?[0-9]+|[a-z]+)\)?\s*\}?|\s(?:in\s+)?base\s*-?\s*(\d+|[a-z]+))"
)


_SHARE = re.compile(r"(\d++)\s++(?:out\s++of|in)\s++(?:every\s++)?(\d++)")
"""A count and what it is counted among: "2 out of 3", "1 in 4"."""
SPOKEN_TIME = re.compile(
    r"(?i)(?:\ban?\s+)?\b(?:(?P<past>half|quarter|\d{1,2}|[a-z]+(?:-[a-z]+)?)(?:\s+minutes)?\s+past|(?P<to>quarter)\s+to)"
    r"\s+(?P<hour>\d{1,2}|[a-z]+)(?!\w)(?:\s+(?:in\s+the\s+(?P<day>morning|afternoon|evening)|at\s+(?P<night>night))"
    r"|\s*(?P<half>[ap])\.?m\b\.?)?|\b(?:12\s+)?(?P<twelve>noon|midnight)\b|\b(?P<sharp>\d{1,2}|[a-z]+)\s+o'clock\b"
)
"""A time of day in words: "half past seven in the evening", "a quarter to 4"."""


def read_spoken_time(text: str) -> Parts | None:
    """Read a time of day in words."""
    match = SPOKEN_TIME.fullmatch(text)
    if match is None:
        return None
    if match["twelve"]:
        return Parts("time", (12, 0, 0, {"noon": "p", "midnight": "a"}[match["twelve"].lower()]))
    hour = _whole_number(match["hour"] or match["sharp"])
    minutes = {"half": 30, "quarter": 15}.get((match["past"] or "").lower())
    if match["sharp"]:
        minutes = 0
    if minutes is None and match["past"]:
        minutes = _whole_number(match["past"])
    if match["to"]:
        minutes = 45
    if hour is None or minutes is None or not 1 <= hour <= 12 or minutes > 59:
        return None
    if match["to"] and hour == 1:
        hour = 12
    elif match["to"]:
        hour = hour - 1
    half = (match["half"] or "").lower()
    if match["day"]:
        half = {"morning": "a"}.get(match["day"].lower(), "p")
    elif match["night"]:
        half = "p"
    return Parts("time", (hour, minutes, 0, half))


def _whole_number(text: str) -> int | None:
    """Read a whole number in digits or words."""
    if text.isdigit():
        return int(text)
    number = read_numeral(text)
    if number is None or number.denominator > 1:
        return None
    return int(number)


def read_parts(text: str) -> list[Reading]:
    """Read a text with several numbers, such as a time, a date or a ratio; return its readings."""
    spoken = read_spoken_time(text)
    if spoken:
        return [spoken]
    match = _SHARE.fullmatch(text)
    if match and 0 < int(match[2]) >= int(match[1]):
        count = sympy.Integer(match[1])
        return [Number(count / sympy.Integer(match[2])), Number(count)]
    match = _TIME_WITH_H.fullmatch(text)
    if match and int(match[1]) < 24 and int(match[2]) < 60:
        lasting = _sum_of_units(f"{match[1]} h {match[2]} min")
        return [Parts("time", (int(match[1]), int(match[2]), 0, "")), *([lasting] if lasting else [])]
    match = _TIME.fullmatch(text)
    if match:
        hour = int(match[1] or match[5])
        half = (match[4] or match[6] or "").lower()
        if hour < 24 and int(match[2] or 0) < 60:
            return [Parts("time", (hour, int(match[2] or 0), int(match[3] or 0), half))]
    for pattern in _DATES:
        match = pattern.fullmatch(text)
        if match:
            groups = match.groupdict()
            name = (groups.get("month") or "")[:3].lower()
            month = _MONTHS.index(name) + 1 if name else int(groups["number"])
            if 1 <= month <= 12 and 1 <= int(groups["day"]) <= 31:
                return [Parts("date", (int(groups["year"] or 0), month, int(groups["day"])))]
    match = _REMAINDER.fullmatch(text)
    if match:
        return [Parts("remainder", (int(match[1]), int(match[2])))]
    match = _NUMERAL.fullmatch(text)
    if match:
        name = match[2] or match[3]
        if name.isalpha():
            base = BASES.get(name, 0)
        elif len(name) < 3:
            base = int(name)
        else:
            base = 0
        if base:
            return [Parts("numeral", (match[1].lower(), base))]
    match = _RESIDUE.fullmatch(text)
    if match and int(match[2]):
        return [Parts("residue", (int(match[1]), int(match[2])))]
    terms = re.split(r"\s*:\s*|\s+to\s+", text)
    if len(terms) > 1 and all(re.search(r"\d|\\|^[a-z]$", term) for term in terms):
        values = [read_constant(trim(term)) for term in terms]
        if all(value is not None for value in values):
            return [Parts("ratio", tuple(value.value for value in values if value is not None))]
    return []


# ---- literals ---------------------------------------------------------------------------------------------

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


_DECIMAL_COMMA = re.compile(r"([-+]?\s*)(\d{1,3}(?:\.\d{3})+|\d+),(\d{1,2}|\d{4,})|([-+]?\s*)(\d{1,3}(?:\.\d{3}){2,})")


def _read_head(text: str) -> Number | None:
    """Read the number before a unit or sign, which may have a decimal comma: a list has no unit."""
    match = _DECIMAL_COMMA.fullmatch(text)
    if match is None:
        return read_constant(text)
    sign = match[1] or match[4] or ""
    whole = match[2] or match[5]
    return _literal(f"{sign}{whole.replace('.', '')}.{match[3] or ''}")


def read_number(text: str) -> list[Reading]:
    """Read a literal number; a percentage is its fraction as well as the number before the sign."""
    rate = _RATE.fullmatch(text)
    if rate:
        number = _read_head(rate[1])
        if number is None:
            return []
        return [Percentage(number, 2 if rate[2] == "%" else 3)]
    if re.fullmatch(r"-?0,\d+|-?\d+,\d\d", text):  # in Europe, "0,111" and "1,22"
        return [Number(sympy.Rational(text.replace(",", ".")), len(text.partition(",")[2]))]
    if re.fullmatch(r"0[xX][\da-fA-F]{1,16}|0[bB][01]{1,64}", text):  # as code writes them
        return [Number(sympy.Integer(int(text, 0)))]
    number = _literal(text)
    if number is None:
        return []
    # 2e - 1 is a formula too
    if "e" in text and text[0].isdigit():
        return [number, *read_formula(text)]
    return [number]


def _literal(text: str) -> Number | None:
    if len(text) > 400:
        return None
    match = _LITERAL.fullmatch(text)
    if match:
        whole = match["whole"] or ""
        decimals = match["decimals"] or ""
        power = int(match["power"] or 0)
        if (whole or decimals) and abs(power) <= 5000:
            value = sympy.Rational(int(whole.replace(",", "") + decimals or 0), 1) * sympy.Integer(10) ** (
                power - len(decimals)
            )
            negative = match["sign"].count("-") % 2
            places = len(decimals) - power if decimals.strip("0") or power else None
            return Number(-value if negative else value, places)
    match = _MIXED.fullmatch(text)
    if match:
        numerator, denominator = (next(filter(None, match.group(n, f"{n}2", f"{n}3"))) for n in "nd")
        if int(denominator) and (not match["whole"] or int(numerator) < int(denominator)):
            value = sympy.Rational(int(numerator), int(denominator)) + int(match["whole"] or 0)
            return Number(-value if match["sign"] else value)
    match = _REPEATING.fullmatch(text)
    if match:
        fixed = match["fixed"]
        block = match["bar"] or match["round"] or match["first"] or ""
        if match["last"]:
            block += (match["between"] or "") + match["last"]
        if match["dots"]:
            cycle = re.search(r"(\d+?)\1+$", fixed)
            if cycle is None:  # cut off
                return _literal(text[: match.start("dots")])
            fixed = fixed[: cycle.start()]
            block = cycle[1]
        value = sympy.Rational(int((match["whole"] or "0") + fixed + block) - int((match["whole"] or "0") + fixed), 1)
        value /= (10 ** len(block) - 1) * sympy.Integer(10) ** len(fixed)
        return Number(-value if match["sign"] else value)
    if re.fullmatch(r"[A-Za-z][A-Za-z\s-]*", text):
        spelt = read_numeral(text)
    else:
        spelt = read_chinese(text)
    if spelt is None:
        return None
    return Number(sympy.Rational(spelt))


def read_constant(text: str) -> Number | None:
    """Read a number: a literal or a formula without variables."""
    number = _literal(text)
    if number is not None:
        return number
    return next((value for value in read_formula(text) if isinstance(value, Number)), None)


# ---- numbers with words -----------------------------------------------------------------------------------

_BOUNDARY = re.compile(
    rf"(?<=[\d}}).!|])\s*(?=[{ALPHABET}/$\u00a2-\u00a5\u20a0-\u20bf\u3000-\u9fff\uac00-\ud7a3^-]|\\(?:frac|mu|Omega)(?![a-z]))|(?<=pi)\s+(?=[A-Za-z])"
)
_LABEL = re.compile(  # of at least three letters: "2rh" and "\\frac12 abc" are products
    rf"(?!(?:{FUNCTIONS}|{LETTER_NAMES}|or|and|not|to|plus|minus|times)\b)"
    rf"(?:-?(?:[{ALPHABET}]{{4,}}|(?:sq|cu)(?=[.\s])|(?=[a-z]*[aeiou])(?![abcdxyz]{{3}})[A-Za-z]{{3}}|(?=[{ALPHABET}]*[\u00e0-\u00e6\u00e8-\u00ef\u00f2-\u00fc\u0430-\u044f])[{ALPHABET}]{{2,3}})"
    rf"[.']?(?:[/'][{ALPHABET}]+)?|an?(?=\s)|of|per|/)"
    rf"(?:[\s-]+[{ALPHABET}.'/]+){{0,7}}(?:\^\{{?\d\}}?)?"
    r"|[\u3000-\u9fff\uac00-\ud7a3]+"
)
_NO_LABEL = re.compile(
    rf"(?i)\b(?:not|cannot|never|than|is|are|was|were|but|or|can|could|should|would)\b|n't|^(?:{VERB_LAST}|{BOUND_BEHIND})"
)
"""Words of a sentence, which is no name of what is counted."""
_CAPITALS = re.compile(
    rf"(?:[A-Z]{{2,}}s|[A-Z]{{3,}}|[A-Z]-[a-z]{{3,}}|[a-z][A-Z][a-z]{{2,}})(?:\s+[{ALPHABET}]+){{0,3}}"
)
"""Abbreviations of things that are counted: CDs, DVD, T-shirts, VIP tickets, iPads."""
_CONTENT = re.compile(rf"\s+of(?:\s+[{ALPHABET}]+){{1,2}}$")
"""The words behind a unit that name what is measured: "of water" in "liters of water"."""
_UNIT_ADVERB = re.compile(
    r"([a-z]{2,})\s+(?:back|more|less|left|long|wide|tall|high|deep|away|ago|apart|later|earlier|old"
    r"|(?:in|al)\s?(?:total|together|all))"
)
"""A unit and a word that says nothing of what is measured: "cents back", "minutes long"."""
_UNIT_FRACTION = re.compile(r"\\frac\s*\{\s*(\w+)\s*\}\s*\{\s*(\w+(?:\^\{?\d\}?)?)\s*\}")
_PIECE = re.compile(
    r"(?P<number>\d+(?:\.\d+)?(?:\s+\d+/\d+|/\d+)?)\s*(?P<unit>[A-Za-z]+\.?|'{1,2}|\"|\u5c0f\u65f6|\u5206\u949f?|\u79d2)"
    r"\s*(?:,|(?:and|y|und|et|e|en)\b)?\s*"
)
_MARKS = {
    "'": "ft", "''": "in", '"': "in", "pound": "lb", "pounds": "lb",
    "\u5c0f\u65f6": "h", "\u5206": "min", "\u5206\u949f": "min", "\u79d2": "s",
}  # fmt: skip


def read_quantity(text: str) -> list[Reading]:
    """Read a number with a currency before it, or with magnitudes, a unit or other words behind it."""
    total = _sum_of_units(text)
    if total:
        return [total]
    before = re.match(rf"([-+]?)\s*({CURRENCIES})(?![A-Za-z])\s*", text)
    if before:
        unit = read_unit("usd" if before[2] in ("$", "US$") else before[2].removesuffix("."))
        amount = before[1] + text[before.end() :]
        head = _read_head(amount)
        if head is None:
            inside = _read_amount(amount)
        else:
            inside = [head]
        return [Quantity(v, *unit) if unit and isinstance(v, Number) else v for v in inside]
    return _read_amount(text) or _read_spelt(text)


_SPELT = re.compile(
    r"([A-Za-z]+(?:[- ][A-Za-z]+){0,7}?)\s+(?:of\s+)?(?:an?\s+)?"
    r"((?:square |cubic )?[A-Za-z]{3,}(?: squared| cubed)?)"
)


def _read_spelt(text: str) -> list[Reading]:
    """Read a number in words with a unit behind it: "two and a half hours", "half a litre"."""
    match = _SPELT.fullmatch(text)
    if match is None:
        return []
    unit = read_unit(match[2])
    number = read_numeral(match[1])
    if unit is None or number is None:
        return []
    return [Quantity(Number(sympy.Rational(number)), *unit)]


def _read_amount(text: str) -> list[Reading]:
    """Read a number with magnitudes, a unit or other words behind it."""
    number = _literal(text)
    if number is not None:
        return [number]
    for boundary in _BOUNDARY.finditer(text):
        head = text[: boundary.start()]
        tail = text[boundary.end() :]
        is_apart = bool(boundary[0])
        scaled = _read_magnitude(head, tail, is_apart)
        if scaled is not None:
            return scaled
        if tail.startswith("^") and re.search(r"\\[a-z]{3}", head.replace("\\frac", "")):
            continue  # the sine of an angle, not degrees
        measured = _read_measured(head, tail, is_apart)
        if measured:
            return measured
    return []


def _read_magnitude(head: str, tail: str, is_apart: bool) -> list[Reading] | None:
    """Read a number with a magnitude behind it, and what is measured or counted; None without a magnitude."""
    word = re.match(r"[A-Za-z]+|[\u4e00-\u9fff]", tail)
    factor = MAGNITUDES.get(word[0], 0) if word else 0
    if word is None or not factor or (is_apart and len(word[0]) == 1 and word[0].isascii()):
        return None
    if not word[0].isascii() and read_unit(tail) is not None:  # "kilo" in Chinese
        return None
    number = read_constant(trim(head))
    if number is None:
        return None
    scaled = Number(number.value * factor, None)
    rest = tail[word.end() :].strip(" -")
    if not rest:
        return [scaled]
    unit = read_unit(rest.removeprefix("of").strip())
    if unit:
        return [Quantity(scaled, *unit)]
    if _LABEL.fullmatch(rest):
        return [scaled]
    deeper = MAGNITUDES.get(rest.split()[0], 0)
    if deeper:
        return [Number(scaled.value * deeper)]
    return []


def _read_measured(head: str, tail: str, is_apart: bool) -> list[Reading]:
    """Read a number with a unit or with what is counted behind it; [] if the words are neither."""
    fraction = _UNIT_FRACTION.fullmatch(tail)
    if fraction:
        tail = f"{fraction[1]}/{fraction[2]}"
    unit = None
    if is_apart or not re.fullmatch("[A-Za-z]", tail):  # 5m may be a product
        unit = read_unit(_CONTENT.sub("", tail))
    is_named = _LABEL.fullmatch(tail) or (is_apart and _CAPITALS.fullmatch(tail))
    if unit is None and (not is_named or _NO_LABEL.search(tail)):
        return []
    number = _read_head(trim(head))
    if number is None:
        return []
    measured = _UNIT_ADVERB.fullmatch(tail)
    if unit is None and measured:
        unit = read_unit(measured[1])
    if unit is None:
        return [replace(number, noun=_noun(tail))]
    results: list[Reading] = [Quantity(number, *unit)]
    sterling = read_unit("\u00a3")
    if sterling and re.match(r"pounds?\b", tail):
        results.append(Quantity(number, *sterling))
    if unit[1] == (("deg", 1),):
        results.append(Number(number.value * sympy.pi / 180))
    return results


def _noun(words: str) -> str:
    """Return the first word behind a number if it may be a noun and is no unit: "apples", not "of" or "pounds"."""
    first = re.split(r"[\s.'/-]", words)[0]
    if first.lower() in _NO_NOUN or read_unit(first) is not None:
        return ""
    return first


_NO_NOUN = frozenset(
    [
        "a",
        "an",
        "of",
        "per",
        "each",
        "more",
        "less",
        "fewer",
        "in",
        "at",
        "on",
        "by",
        "to",
        "from",
        "for",
        "with",
        "after",
        "before",
        "total",
        "altogether",
        "left",
        "remaining",
        "old",
        "long",
        "wide",
        "tall",
        "high",
        "deep",
        "away",
        "ago",
        "apart",
        "exactly",
        "approximately",
        "about",
        "only",
        "and",
        "square",
        "cubic",
        "sq",
        "cu",
        "degrees",
        "units",
        "unit",
    ]
)


def _sum_of_units(text: str) -> Quantity | None:
    """Read "5 ft 3 in" or "2 hours and 15 min": at least two units of one dimension, from large to small."""
    position = 0
    pieces = []
    while match := _PIECE.match(text, position):
        unit = read_unit(_MARKS.get(match["unit"], match["unit"]))
        number = _literal(match["number"])
        if unit is None or number is None:
            return None
        pieces.append((number.value, *unit))
        position = match.end()
    factors = [factor for _, factor, _ in pieces]
    if (
        position < len(text)
        or len(pieces) < 2
        or len({dimension for _, _, dimension in pieces}) > 1
        or any(large <= small for large, small in pairwise(factors))
    ):
        return None
    total = sum(value * sympy.Rational(factor) for value, factor, _ in pieces)
    return Quantity(Number(total), Fraction(1), pieces[0][2], is_sum=True)
