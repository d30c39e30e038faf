"""The words behind and before a number: units with their factors, magnitudes and numerals."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from lit_rlvr.answers.characters import ALPHABET

Dimension = tuple[tuple[str, int], ...]
"""Powers of base units, sorted: (("m", 1), ("s", -1)) for km/h."""

_BASE: dict[str, dict[str, str]] = {
    "m": {
        "1": "m meter meters metre metres", "1/1000": "mm millimeter millimeters millimetre millimetres",
        "1/100": "cm centimeter centimeters centimetre centimetres", "1/10": "dm decimeter decimeters decimetre",
        "1000": "km kilometer kilometers kilometre kilometres", "1/1000000": "um micrometer micrometers micron microns",
        "1/1000000000": "nm nanometer nanometers", "254/10000": "in inch inches",
        "3048/10000": "ft foot feet", "9144/10000": "yd yard yards", "1609344/1000": "mi mile miles",
    },
    "kg": {
        "1": "kg kilogram kilograms kilo kilos", "1/1000": "g gram grams gm gms",
        "1/1000000": "mg milligram milligrams",
        "1000": "tonne tonnes", "45359237/100000000": "lb lbs pound pounds",
        "28349523125/1000000000000": "oz ounce ounces",
    },
    "s": {
        "1": "s sec secs second seconds", "1/1000": "ms millisecond milliseconds", "60": "min mins minute minutes",
        "3600": "h hr hrs hour hours", "86400": "d day days", "604800": "wk week weeks",
        "31536000": "yr yrs year years",
    },
    "month": {"1": "month months"},
    "deg": {"1": "deg degree degrees \\circ"},
    "rad": {"1": "rad radian radians"},
    "kelvin": {"1": "K kelvin kelvins"},
    "celsius": {"1": "\\circc celsius degc centigrade"},
    "fahrenheit": {"1": "\\circf fahrenheit degf"},
    "usd": {"1": "$ usd dollar dollars buck bucks", "1/100": "\u00a2 cent cents"},
    "eur": {"1": "\u20ac eur euro euros"},
    "gbp": {"1": "\u00a3 gbp quid", "1/100": "penny pence"},
    "cny": {"1": "\u00a5 cny rmb yuan \u5143 \u5757", "1/10": "jiao \u89d2"},
    "jpy": {"1": "jpy yen \u5186"},
    "inr": {"1": "\u20b9 inr rs rupee rupees", "1/100": "paisa paise"},
    "krw": {"1": "\u20a9 krw won \uc6d0"},
    "rub": {"1": "\u20bd rub ruble rubles rouble roubles"},
    "vnd": {"1": "\u20ab vnd dong"},
    "ampere": {"1": "A ampere amperes amp amps"},
    "chf": {"1": "chf"}, "peso": {"1": "peso pesos"},
    "mol": {"1": "mol mole moles"},
    "bit": {
        "1": "bit bits", "8": "byte bytes B", "8000": "KB", "8192": "KiB", "8388608": "MiB", "8589934592": "GiB",
        "8796093022208": "TiB",
    },
}  # fmt: skip
_DERIVED: dict[str, tuple[str, str]] = {  # name -> (factor, units)
    "l L liter liters litre litres": ("1/1000", "m^3"), "ml milliliter milliliters cc": ("1/1000000", "m^3"),
    "gal gallon gallons": ("3785411784/1000000000000", "m^3"), "qt quart quarts": ("946352946/1000000000000", "m^3"),
    "pt pint pints": ("473176473/1000000000000", "m^3"), "C coulomb coulombs": ("1", "ampere*s"),
    "eV ev electronvolt electronvolts": ("1602176634/10000000000000000000000000000", "kg*m^2/s^2"),
    "ha hectare hectares": ("10000", "m^2"), "acre acres": ("40468564224/10000000", "m^2"),
    "mph": ("1", "mi/h"), "kmh kmph kph": ("1", "km/h"), "N newton newtons": ("1", "kg*m/s^2"),
    "Nm": ("1", "kg*m^2/s^2"), "J joule joules": ("1", "kg*m^2/s^2"), "kj kilojoule kilojoules": ("1000", "kg*m^2/s^2"),
    "W watt watts": ("1", "kg*m^2/s^3"), "Wh": ("3600", "kg*m^2/s^2"), "kw kilowatt kilowatts": ("1000", "kg*m^2/s^3"),
    "pa pascal pascals": ("1", "kg/m/s^2"), "kpa": ("1000", "kg/m/s^2"), "hz hertz": ("1", "s^-1"),
    "V volt volts": ("1", "kg*m^2/s^3/ampere"), "ohm ohms \\Omega": ("1", "kg*m^2/s^3/ampere^2"),
}  # fmt: skip
_CHINESE = {
    "\u7c73": "m", "\u5206\u7c73": "dm", "\u5398\u7c73": "cm", "\u6beb\u7c73": "mm", "\u5343\u7c73": "km",
    "\u516c\u91cc": "km", "\u514b": "g", "\u5343\u514b": "kg", "\u516c\u65a4": "kg", "\u5428": "tonne", "\u5347": "L",
    "\u6beb\u5347": "mL", "\u79d2": "s", "\u5206\u949f": "min", "\u5206": "min", "\u5c0f\u65f6": "h", "\u5929": "d",
    "\u5468": "week", "\u5e74": "year", "\u5ea6": "deg", "\u7f8e\u5143": "usd", "\u65e5\u5143": "jpy",
    "\u6b27\u5143": "eur", "\u82f1\u9551": "gbp", "\u4eba\u6c11\u5e01": "cny",
}  # fmt: skip
_OTHER_LANGUAGES = {
    "s": "segundo segundos sekunde sekunden seconde secondes secondo secondi seconden",
    "min": "minuto minutos minuten minuti minuut",
    "h": "hora horas stunde stunden heure heures ore uur uren",
    "d": "d\u00eda d\u00edas dia dias tag tage tagen jour jours giorno giorni dag dagen",
    "week": "semana semanas woche wochen semaine semaines settimana settimane weken",
    "month": "mes meses monat monate monaten mois m\u00eas mese mesi maand maanden",
    "year": "a\u00f1o a\u00f1os jahr jahre jahren ans ann\u00e9e ann\u00e9es anno anni ano anos jaar jaren",
    "m": "metro metros metri m\u00e8tre m\u00e8tres metern",
    "km": "kil\u00f3metro kil\u00f3metros kilom\u00e8tre kilom\u00e8tres kilometern chilometro chilometri "
    " quil\u00f4metro quil\u00f4metros",
    "cm": "cent\u00edmetro cent\u00edmetros zentimeter zentimetern centim\u00e8tre centim\u00e8tres "
    "centimetro centimetri",
    "kg": "kilogramo kilogramos kilogramm kilogramme kilogrammes chilogrammo chilogrammi quilo quilos quilogramas",
    "g": "gramo gramos gramm gramme grammes grammo grammi grama gramas",
    "L": "litro litros litri",
    "deg": "grado grados grad degr\u00e9 degr\u00e9s gradi grau graus graden",
    "usd": "d\u00f3lar d\u00f3lares dollari",
}
"""Unit -> its names in Spanish, German, French, Italian, Portuguese and Dutch."""
_PREFIXES = {
    "n": "1/1000000000", "u": "1/1000000", "m": "1/1000", "c": "1/100", "k": "1000", "M": "1000000", "G": "1000000000",
    "T": "1000000000000",
    "nano": "1/1000000000", "micro": "1/1000000", "milli": "1/1000", "centi": "1/100", "kilo": "1000",
    "mega": "1000000", "giga": "1000000000",
}  # fmt: skip
_SYMBOLS = frozenset(
    ["m", "g", "s", "A", "L", "l", "N", "J", "W", "V", "Pa", "Hz", "mol", "eV", "C", "bit", "B", "Wh", "\\Omega"]
)
_PREFIXED = re.compile(
    r"(?:met(?:er|re)|gram|second|ampere|lit(?:er|re)|newton|joule|watt|volt|pascal|mole|ohm|byte)s?|hertz"
)
"""Units that take prefixes."""
_UNITS: dict[str, tuple[Fraction, Dimension]] = {
    name: (Fraction(factor), ((base, 1),))
    for base, factors in _BASE.items()
    for factor, names in factors.items()
    for name in names.split()
}
CURRENCIES = (
    "[$\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd\u20ab]|(?:US|A|C|HK|NT|S)\\$|USD|EUR|GBP|CNY|RMB|JPY|INR|Rs\\.?|KRW|CHF"
)
"""The currencies that stand before a number, as a regular expression."""

MAGNITUDES = {
    "hundred": 100, "thousand": 10**3, "thousands": 10**3, "million": 10**6, "millions": 10**6, "billion": 10**9,
    "billions": 10**9, "trillion": 10**12, "trillions": 10**12, "dozen": 12, "dozens": 12, "lakh": 10**5,
    "lakhs": 10**5, "crore": 10**7, "crores": 10**7, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "bn": 10**9,
    "mn": 10**6,
    "\u5341": 10, "\u767e": 100, "\u5343": 10**3, "\u4e07": 10**4, "\u842c": 10**4, "\u4ebf": 10**8, "\u5104": 10**8,
}  # fmt: skip
_SQUARED = "squared|cuadrados?|carr\u00e9s?|quadrat[oi]|quadrados?"
_CUBED = "cubed|c\u00fabicos?|cubes?|cub[oi]"
_FACTOR = re.compile(
    r"\s*(?P<op>/|per\b|[*.]|\\cdot|\\times)?\s*(?:(?:(?P<square>square|sq)|(?P<cube>cubic|cu))\b\.?\s*"
    r"|(?P<square_of>[Qq]uadrat)(?=[a-z]{4})|(?P<cube_of>[Kk]ubik)(?=[a-z]{4}))?"
    rf"(?P<unit>\\circ\s*[CF]\b|[A-Za-z]?\s*\\Omega|\\[A-Za-z]+|[{ALPHABET}]+|[\u4e00-\u9fff]+|[$\u00a2\u20ac\u00a3\u00a5\u20b9\u20a9\u5143\u5186\u5757\u89d2\uc6d0])\.?"
    rf"(?:\s*\^?\s*\{{?(?P<exponent>-?\d)\}}?|\s+(?:(?P<squared>{_SQUARED})|(?P<cubed>{_CUBED}))(?![{ALPHABET}]))?\s*"
)


@lru_cache(maxsize=4096)
def read_unit(text: str) -> tuple[Fraction, Dimension] | None:
    """Return the factor to base units and the dimension of "km/h", "sq. ft." or "cm^2"; None if it is no known unit."""
    text = text.strip().removeprefix("^").replace("{\\circ}", "\\circ").strip("{}").removesuffix(" old")
    text = re.sub(r"(?i)degrees?\s+(?=celsius|fahrenheit)|light-(?=year)", "", text)
    text = re.sub(r"\\mu\s*(?=[A-Za-z])", "u", text)
    text = re.sub(r"\s*/\s*\(([^()]*)\)", _without_brackets, text)
    text = text.replace("electron volt", "electronvolt")
    factor = Fraction(1)
    powers = dict[str, int]()
    position = 0
    while position < len(text):
        match = _FACTOR.match(text, position)
        known = match and _lookup(match["unit"])
        if not match or not known or (position == 0 and match["op"] not in (None, "/", "per")):
            return None
        exponent = int(match["exponent"] or 1) * _power(match)
        if match["op"] in ("/", "per"):
            exponent = -exponent
        factor *= known[0] ** exponent
        for base, power in known[1]:
            powers[base] = powers.get(base, 0) + power * exponent
        position = match.end()
    dimension = tuple(sorted((base, power) for base, power in powers.items() if power))
    if dimension:
        return (factor, dimension)
    return None


def _power(factor: re.Match[str]) -> int:
    """Return the power that the words around a unit give it: 2 for "square metres" and "metres squared"."""
    if factor["square"] or factor["square_of"] or factor["squared"]:
        return 2
    if factor["cube"] or factor["cube_of"] or factor["cubed"]:
        return 3
    return 1


def _without_brackets(below: re.Match[str]) -> str:
    """Return a product below a fraction bar as divisions: "/(m*s)" is "/m/s"."""
    return "/" + re.sub(r"\s*(?:\*|\\cdot|\s)\s*", "/", below[1].strip())


def _lookup(name: str) -> tuple[Fraction, Dimension] | None:
    name = re.sub(r"\s", "", name)  # "\\circ C"
    if name in _CHINESE:
        return _lookup(_CHINESE[name])
    if name[:2] in ("\u5e73\u65b9", "\u7acb\u65b9") and (base := _lookup(name[2:])):
        power = 2 if name[0] == "\u5e73" else 3
        return base[0] ** power, tuple((unit, exponent * power) for unit, exponent in base[1])
    for form in dict.fromkeys((name, name.lower())) if len(name) > 1 else (name,):
        known = _UNITS.get(form) or _prefixed(form)
        if known:
            return known
    return None


def _prefixed(name: str) -> tuple[Fraction, Dimension] | None:
    """Read km, mA or "microseconds": a symbol behind the symbol of a prefix, or a word behind its word."""
    for prefix, size in _PREFIXES.items():
        rest = name.removeprefix(prefix)
        if rest != name and (rest in _SYMBOLS if len(prefix) == 1 else _PREFIXED.fullmatch(rest)):
            base = _UNITS.get(rest) or _UNITS.get(rest.lower())
            if base is None:
                return None
            return (Fraction(size) * base[0], base[1])
    return None


for _names, (_size, _units) in _DERIVED.items():
    _unit = read_unit(_units)
    if _unit is None:
        raise ValueError(f"_DERIVED: {_units} is no unit")
    _UNITS |= {name: (Fraction(_size) * _unit[0], _unit[1]) for name in _names.split()}


for _known, _names in _OTHER_LANGUAGES.items():
    _UNITS |= dict.fromkeys(_names.split(), _UNITS[_known])


_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {word: i for i, word in enumerate(_ONES)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "thirds": 3,
    "quarter": 4,
    "quarters": 4,
    "fourth": 4,
    "fourths": 4,
    "fifths": 5,
    "sixths": 6,
    "sevenths": 7,
    "eighths": 8,
    "ninths": 9,
    "tenths": 10,
    "elevenths": 11,
    "twelfths": 12,
    "thirteenths": 13,
    "fourteenths": 14,
    "fifteenths": 15,
    "sixteenths": 16,
    "seventeenths": 17,
    "eighteenths": 18,
    "nineteenths": 19,
    "twentieths": 20,
    "hundredths": 100,
    "thousandths": 1000,
}
BASES = {word: i for word, i in _WORDS.items() if 2 <= i <= 16}


@lru_cache(maxsize=4096)
def read_numeral(text: str) -> Fraction | None:
    """Return the value of "twenty-one", "minus three", "two hundred and five" or "two and a half"; else None."""
    words = re.sub(r"[\s-]+", " ", text.strip().lower()).split()
    whole, _, part = " ".join(words).rpartition(" and ")
    if whole and part.split()[-1] in _PARTS:  # "three and a half"
        above = read_numeral(whole)
        below = read_numeral(part)
        if above is None or below is None:
            return None
        return above + (below if above >= 0 else -below)
    if words and words[0] in ("minus", "negative"):
        sign = -1
    else:
        sign = 1
    words = [word for word in words[sign < 0 :] if word != "and"]
    if len(words) > 1 and words[0] in ("a", "an") and words[1] in MAGNITUDES:
        words[0] = "one"
    if words == ["half"]:
        return Fraction(sign, 2)
    if len(words) == 2 and words[0] == "one" and f"{words[1]}s" in _PARTS:  # "one twelfth"; "a twelfth" may be another
        return Fraction(sign, _PARTS[f"{words[1]}s"])
    if len(words) == 2 and words[1] in _PARTS and words[0] in ("a", "one", *_ONES):
        return Fraction(sign * _WORDS.get(words[0], 1), _PARTS[words[1]])
    total = 0
    current = None
    for word in words:
        if word in _WORDS:
            current = (current or 0) + _WORDS[word]
        elif word in MAGNITUDES and len(word) > 2 and word.isalpha() and word.isascii():
            current = (1 if current is None else current) * MAGNITUDES[word]
            if MAGNITUDES[word] > 100:
                total = total + current
                current = 0
        else:
            return None
    if current is None:
        return None
    return Fraction(sign * (total + current))


_CHINESE_DIGITS = "\u96f6\u4e00\u4e8c\u4e09\u56db\u4e94\u516d\u4e03\u516b\u4e5d"
_CHINESE_PLACES = {"\u5341": 10, "\u767e": 100, "\u5343": 1000, "\u4e07": 10**4, "\u4ebf": 10**8}


def read_chinese(text: str) -> Fraction | None:
    """Return the value of a Chinese numeral up to hundreds of millions, or a fraction of two ("a parts of b")."""
    denominator, parts, numerator = text.partition("\u5206\u4e4b")
    if parts:
        below = read_chinese(denominator)
        above = read_chinese(numerator)
        if above is not None and below:
            return above / below
        return None
    total = 0
    section = 0
    digit = None
    for character in text.replace("\u4e24", "\u4e8c"):
        if character in _CHINESE_DIGITS:
            digit = _CHINESE_DIGITS.index(character)
        elif place := _CHINESE_PLACES.get(character):
            if place < 10**4:
                section += (1 if digit is None else digit) * place
            else:
                total = (total + section + (digit or 0)) * place
                section = 0
            digit = None
        else:
            return None
    if text:
        return Fraction(total + section + (digit or 0))
    return None
