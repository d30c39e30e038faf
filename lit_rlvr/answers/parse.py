"""Texts as values: the readers that recognise each type.

`parse` returns all readings of a text, because a text alone does not tell them apart: `(2,3)` is a point and an
interval, `1,234` a number and a list. The comparison with the reference decides which one counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sympy

from lit_rlvr.answers.characters import ALPHABET, plain_characters
from lit_rlvr.answers.find import normalise
from lit_rlvr.answers.formulas import is_code, read_formula, to_sympy
from lit_rlvr.answers.frames import single_backslashes
from lit_rlvr.answers.latex import (
    BRACKETS,
    COMMAS,
    clean,
    closing_bracket,
    separators_outside,
    split_outside,
    trim,
)
from lit_rlvr.answers.names import YES_NO, other_names
from lit_rlvr.answers.numbers import read_constant, read_number, read_parts, read_quantity
from lit_rlvr.answers.values import (
    Chain,
    Equation,
    Labelled,
    Matrix,
    Number,
    Parts,
    Percentage,
    Quantity,
    Reading,
    Region,
    Series,
    Text,
    first_of,
)

LONGEST = 2000
"""Longer texts are compared as text only."""


_SUBSTANCE = r"\d*\s*[a-z][\w{}()]*(?:\^\{?\d?[+-]\}?)?"
_SUBSTANCES = rf"{_SUBSTANCE}(?:\s*\+\s*{_SUBSTANCE})*"
_REACTION = re.compile(rf"{_SUBSTANCES}\s*(?:-+>|\\to)\s*{_SUBSTANCES}")
"""A chemical reaction in normalised form."""
_WITH_GROUPS = re.compile(r"[a-z](?:[a-z\d]|_\{?\d+\}?|\([a-z\d_{}]+\))*")
_ION = re.compile(r"[a-z][a-z\d_{}()]*\^?\{?\d?[+-]\}?")


def _chemical(key: str) -> list[Text]:
    """Return a formula with lowered numbers, an ion or a reaction as it is typed without markup: "so42-"."""
    is_formula = "_" in key and (is_code(key.upper()) or _WITH_GROUPS.fullmatch(key) is not None)
    if is_formula or _ION.fullmatch(key) or _REACTION.fullmatch(key):
        return [Text(re.sub(r"[_{}^\s]", "", key.replace("\\to", "->")))]
    return []


@lru_cache(maxsize=4096)
def parse(text: str) -> tuple[Reading, ...]:
    """Return all readings of a text, as text first."""
    text = single_backslashes(text)
    key = normalise(plain_characters(text)) or normalise(text)
    readings_of_text: list[Reading] = [Text(key)] if key else []
    if re.fullmatch(r"\w(?: \w)+", key) and not key.replace(" ", "").isdigit():
        readings_of_text.append(Text(key.replace(" ", "")))
    readings_of_text += _chemical(key)
    if not re.search(r"\d|[\\^_=]", key) and (spelt := re.sub(r"\.\s*", " ", key).strip()) != key:  # initials
        readings_of_text.append(Text(spelt))
    if re.fullmatch(r"-?[\d.,]+ [a-z]+", key):
        readings_of_text.append(Text(key.replace(" ", "")))
    readings_of_text += [Text(normalise(name)) for name in other_names(text)]
    if key in YES_NO:
        readings_of_text.append(Text(YES_NO[key]))
    article = re.match(r"(?:the|an?) (?=[a-z]{3})", key)
    if article:
        readings_of_text.append(Text(key[article.end() :]))
    if len(text) <= LONGEST and (cleaned := clean(text)):
        cleaned_key = normalise(cleaned)
        readings_of_text += [*_chemical(cleaned_key), Text(cleaned_key), *_read(cleaned, 0)]
    if not any(isinstance(v, Labelled | Matrix) for v in readings_of_text):
        return tuple(dict.fromkeys(readings_of_text))
    return tuple(readings_of_text)


def readings(text: str, depth: int) -> tuple[Reading, ...]:
    """Return the readings of a part of a text that has been cleaned."""
    text = trim(text)
    if text:
        return (Text(normalise(text)), *_read(text, depth))
    return ()


_OPTION = re.compile(r"\(([A-Ja-j])\)[.:]?\s*((?!and\b|or\b|[,;&(])\S.*)|([A-J])[).:]\s+(\S.*)")


_GROUPED = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
"""A number with groups of thousands."""
_DETERMINANT = re.compile(r"\\begin\s*\{vmatrix\}.*\\end\s*\{vmatrix\}\s*=\s*([^=]+)")
_SAID = {
    "infinitely many": r"(?:there (?:is|are) )?(?:infinitely many|(?:an )?infinite(?: number of)?)(?: solutions?)?",
    "dne": r"(?:the limit )?(?:does not exist|dne)",
    "diverges": r"(?:(?:that )?the \w+ )?(?:diverges|is divergent|divergent)",
    "undefined": r"(?:is )?(?:undefined|not defined)",
}
"""An answer without a value -> the ways to say it."""


def _read(text: str, depth: int) -> list[Reading]:
    """Return what a cleaned text means besides its words."""
    if depth > 6 or not text:
        return []
    option = _OPTION.fullmatch(text)
    if option:
        return [Text((option[1] or option[3]).lower()), *readings(option[2] or option[4], depth + 1)]
    if re.fullmatch(r"-?\d+(?:\.\d+)?(?:\s+-?\d+(?:\.\d+)?)+", text):
        return []  # a row of numbers
    if re.fullmatch(r"[0-9A-Fa-f]+_\{?\(?16\)?\}?", text) and not text.partition("_")[0].isdigit():
        return [Text(text.partition("_")[0].lower()), *read_parts(text)]
    for reader in (read_parts, read_number, read_quantity):
        results = reader(text)
        if results:
            if re.fullmatch(r"\d+(?:,\d+)+", text):  # 1,234
                items = [value for value in _list(text, depth) if isinstance(value, Series)]
                is_grouped = re.fullmatch(r"\d{1,3}(?:,\d{3})+", text) is not None
                return [*results, *(Series(value.items, "()" if is_grouped else "") for value in items)]
            return [*results, *(_list(text, depth) if re.fullmatch(r".*\sand\s.*", text) else [])]
    if re.fullmatch(r"(?:\(\d{1,2}\)){2,}", text):  # statements by their numbers
        numbers = re.findall(r"\d+", text)
        return [Series(tuple(readings(number, depth + 1) for number in numbers)), *read_formula(text)]
    if re.fullmatch(r"\\emptyset|\\\{\s*\\\}|(?i:no (?:real )?solutions?)|(?i:(?:the )?empty set)", text):
        return [Series((), "{}")]
    if re.fullmatch(r"\(?-?\s*\\infty,\s*\+?\s*\\infty\)?|\\mathbb\{R\}", text):
        return [Region(((-sympy.oo, sympy.oo, True, True),))]
    determinant = _DETERMINANT.fullmatch(text)
    if determinant:
        return _read(determinant[1], depth + 1)
    if "\\begin" in text:
        named = re.match(r"([^=]{1,30}?)\s*=\s*(?=\\begin)", text)
        if named is None:
            return read_formula(text)
        return [Labelled({_label(named[1]): (readings(text[named.end() :], depth + 1),)})]
    word = next((key for key, pattern in _SAID.items() if re.fullmatch(pattern, text, re.I)), None)
    if word:
        return [Text(word)]
    vector = _basis_vector(text, depth) or _scaled_vector(text, depth)
    if vector is not None:
        return [vector, *read_formula(text)]
    first, second = (_plus_minus, _bracketed) if text[0] == "(" else (_bracketed, _plus_minus)
    if "=" in text and not re.search(r"[(\[{]", text):
        text = _GROUPED.sub(lambda match: match[0].replace(",", ""), text)
    for read in (_bound, _list, _set_operations, _relation, first, second):
        values = read(text, depth)
        if values:
            return values
    return read_formula(text)


_COMPONENT = re.compile(r"\s*([-+]?)\s*([^-+ijk]*?)\s*([ijk])(?![A-Za-z])")


def _basis_vector(text: str, depth: int) -> Series | None:
    """Read a sum of the unit vectors i, j and k, at least two of them: "3i - j + 2k"."""
    components: dict[str, str] = {}
    position = 0
    while match := _COMPONENT.match(text, position):
        components[match[3]] = f"{match[1].removeprefix('+')}{match[2].strip(' *') or '1'}"
        position = match.end()
    names = "".join(components)
    if position < len(text.rstrip()) or names not in ("ij", "ik", "jk", "ijk"):
        return None
    if "k" in names:
        order = "ijk"
    else:
        order = "ij"
    return Series(tuple(readings(components.get(name, "0"), depth + 1) for name in order), "()")


_SCALED = re.compile(
    r"([-\d./]+|-?\\(?:frac|sqrt)\s*\{[^{}]*\}(?:\s*\{[^{}]*\})?)\s*(?:\*|\\cdot|\\times)?\s*(\([^()]*,[^()]*\))"
)


def _scaled_vector(text: str, depth: int) -> Series | None:
    """Read a constant times a vector: "1/3 (2, -1, 2)"."""
    match = _SCALED.fullmatch(text)
    if match is None:
        return None
    factor = match[1].strip()
    items = [f"({factor})\\cdot({item.strip()})" for item in match[2][1:-1].split(",")]
    return Series(tuple(readings(item, depth + 1) for item in items), "()")


_SIGNS_IN_WORDS = {
    "at most": "\\le", "less than or equal to": "\\le", "less than": "<",
    "at least": "\\ge", "greater than or equal to": "\\ge", "greater than": ">",
}  # fmt: skip
_END = r"-?[\d.]+|-?\\[a-z]+\S*"
_BOUND_IN_WORDS = re.compile(
    r"(?:(?:so|thus|hence|therefore|then),?\s+)?(?:(?:\\mathbb\{R\}|(?:all|any|the)?\s*(?:numbers?|values?(?:\s+of\s+[a-z])?)|[a-z])\s+)"
    r"(?:(?:that\s+|which\s+)?(?:is|are|must\s+be)\s+)?"
    rf"({'|'.join(_SIGNS_IN_WORDS)})\s+({_END})(?:\s+(?:and|but)\s+({'|'.join(_SIGNS_IN_WORDS)})\s+({_END}))?",
    re.IGNORECASE,
)
"""A bound of an unknown: "x is at most 4", "all real numbers less than 3"."""
BETWEEN = re.compile(
    r"(?:[a-z]|(?:numbers?|values?)(?:\s+of\s+[a-z])?)\s+(?:(?:is|are|lies|lie|must\s+be)\s+)?"
    r"(?:between|from)\s+(-?[\d.]+)\s+(?:and|to)\s+(-?[\d.]+),?\s+inclusive"
)
"""The values between two, both included: "x between -2 and 5, inclusive"."""


# ---- lists, brackets, sets --------------------------------------------------------------------------------


def _bound(text: str, depth: int) -> list[Reading]:
    """Read a bound in words."""
    both = BETWEEN.fullmatch(text)
    if both:
        return _relation(f"{both[1]} \\le x \\le {both[2]}", depth)
    match = _BOUND_IN_WORDS.fullmatch(text)
    if match is None:
        return []
    first = f"x {_SIGNS_IN_WORDS[match[1].lower()]} {match[2]}"
    if match[3]:
        return _list(f"{first} and x {_SIGNS_IN_WORDS[match[3].lower()]} {match[4]}", depth)
    return _relation(first, depth)


_OR = re.compile(r"\bor\b|\\or(?![A-Za-z])|\\lor(?![A-Za-z])|\\cup|\|\|")


def _list(text: str, depth: int) -> list[Reading]:
    """Read items with commas, semicolons, "and" or "or" between them, with their labels if they have some."""
    parts = [trim(part) for part in split_outside(text, COMMAS)]
    if len(parts) < 2:
        return []
    parts = [part for part in parts if part]
    if len(parts) == 1:
        return _read(parts[0], depth + 1)
    items = [readings(part, depth + 1) for part in parts]
    relations = [first_of((Labelled, Region, Equation), item) for item in items]
    labelled = [relation for relation in relations if isinstance(relation, Labelled)]
    if len(labelled) == len(relations):
        merged: dict[str, tuple[tuple[Reading, ...], ...]] = {}
        for relation in labelled:
            for label, values in relation.values.items():
                merged[label] = merged.get(label, ()) + values
        return [Labelled(merged)]
    regions = _with_points([first_of(Region, item) for item in items], items, parts)
    if all(v is not None for v in regions) and all(_has_relation(part) for part in parts):
        solutions = [_sympy_set(v) for v in regions if v is not None]
        if _OR.search(text) or any(isinstance(solution, sympy.FiniteSet) for solution in solutions):
            return _region(sympy.Union(*solutions))
        common = sympy.Intersection(*solutions)
        if common is sympy.S.EmptySet and not re.search(r"\band\b", text):
            return _region(sympy.Union(*solutions))  # "x < -2, x > 2"
        return _region(common)
    if regions[0] is not None and "\\ne" in parts[0]:
        others = [first_of(Number, item) for item in items[1:]]
        if None not in others:  # "x is neither 5 nor -5"
            excluded = sympy.FiniteSet(*(number.value for number in others if number is not None))
            return _region(sympy.Complement(_sympy_set(regions[0]), excluded))
    first = relations[0]
    if isinstance(first, Labelled) and len(first.values) == 1 and not any(relations[1:]):
        ((label, values),) = first.values.items()
        return [Labelled({label: (*values, *items[1:])})]
    solution = _solution(relations)
    if solution:
        return [solution]
    flat = _flat(items)
    if all(re.fullmatch("[A-Z]", part) for part in parts):
        letters = [Text("".join(parts).lower())]
    else:
        letters = []
    return [Series(tuple(flat)), *letters]


def _with_points(
    regions: list[Region | None], items: Sequence[tuple[Reading, ...]], parts: Sequence[str]
) -> list[Region | None]:
    """Return regions of one unknown with those of its single values: "x < 0 or x = 2"."""
    if all(region is None for region in regions):
        return regions
    names = {match[1] for part in parts if (match := _UNKNOWN.match(part))}
    if len(names) != 1 or not all(map(_UNKNOWN.match, parts)):
        return regions
    found = []
    for region, item in zip(regions, items, strict=True):
        labelled = first_of(Labelled, item)
        if region is None and labelled is not None:
            ((value,),) = labelled.values.values()
            number = first_of(Number, value)
            if number is not None:
                region = Region(((number.value, number.value, False, False),))
        found.append(region)
    return found


_UNKNOWN = re.compile(r"(?:-?[\d./]+\s*(?:<|\\le)\s*)?([a-zA-Z])\s*(?:[<>=]|\\(?:le|ge|ne)(?![a-z]))")
"""The beginning of a relation of an unknown."""


def _solution(relations: Sequence[Any]) -> Labelled | None:
    """Return the last of some equations in one unknown if it is the solution of the others: "5x = 30, x = 6"."""
    *equations, last = relations
    if not isinstance(last, Labelled) or len(last.values) != 1 or not all(isinstance(v, Equation) for v in equations):
        return None
    ((label, items),) = last.values.items()
    value = next((v.value for v in items[0] if isinstance(v, Number)), None)
    symbols = {str(symbol) for equation in equations for symbol in equation.difference.free_symbols}
    if value is None or len(items) != 1 or symbols != {label}:
        return None
    left = [equation.difference.subs(sympy.Symbol(label), value) for equation in equations]
    if all(sympy.simplify(number) == 0 for number in left):
        return last
    return None


def _flat(items: Sequence[tuple[Reading, ...]]) -> list[tuple[Reading, ...]]:
    """Return items with those of a list among them, such as both values of \u00b1 2, in its place."""
    flat: list[tuple[Reading, ...]] = []
    for item in items:
        series = next((v for v in item if isinstance(v, Series) and v.brackets == ""), None)
        flat += series.items if series is not None else [item]
    return flat


def _bracketed(text: str, depth: int) -> list[Reading]:
    """Read items in brackets: a tuple, a set, an interval."""
    if text.startswith("\\{") and text.endswith("\\}"):
        opening = "{"
        inside = text[2:-2]
        closing = "}"
    elif len(text) > 2 and text[0] in "([{" and text[-1] in ")]}":
        opening = text[0]
        inside = text[1:-1]
        closing = text[-1]
    else:
        return []
    if text[0] in BRACKETS and BRACKETS[text[0]] == closing and closing_bracket(text, 0) != len(text) - 1:
        return []
    matrix = _rows_of_matrix(opening, inside)
    if matrix:
        return [matrix]
    parts = [trim(part) for part in split_outside(inside, re.compile(r"\s*[,;]\s*"))]
    if opening == "{" and (match := re.match(r"\s*[a-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:]\s*", inside)):
        return _read(trim(inside[match.end() :]), depth + 1)
    if len(parts) < 2 and opening != "{":
        if opening + closing in ("()", "[]"):
            return _read(trim(inside), depth + 1)
        return []
    brackets = opening + closing
    items = [readings(part, depth + 1) for part in parts if part]
    if opening == "{":
        items = _flat(items)
    results: list[Reading] = [Series(tuple(items), brackets)]
    if len(parts) == 2 and opening != "{":
        ends = [read_constant(re.sub(r"^\+\s*", "", part)) for part in parts]
        if all(end is not None and end.value.is_extended_real for end in ends):
            start, end = (e.value for e in ends if e is not None)
            if (start < end) == True:  # noqa: E712 (a sympy relation)
                results += _region(sympy.Interval(start, end, brackets[0] == "(", brackets[1] == ")"))
    return results


def _rows_of_matrix(opening: str, inside: str) -> Matrix | None:
    """Read rows with semicolons between them, as in "[1, 2; 3, 4]"."""
    rows = [re.split(r"\s*,\s*|\s+", row.strip()) for row in inside.split(";")]
    if opening != "[" or len(rows) < 2 or len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
        return None
    cells = [to_sympy(cell) for row in rows for cell in row]
    if all(isinstance(cell, sympy.Expr) for cell in cells):
        return Matrix(sympy.ImmutableMatrix(len(rows), len(rows[0]), cells))
    return None


def _set_operations(text: str, depth: int) -> list[Reading]:
    """Read unions, intersections and differences of sets of real numbers."""
    for command, combine in (
        (r"\\cup", sympy.Union),
        (r"\\setminus|\\backslash|(?<=\})\s*-\s*(?=\\\{)", sympy.Complement),
        (r"\\cap", sympy.Intersection),
    ):
        parts = split_outside(
            text.replace("\\{", "{").replace("\\}", "}"), re.compile(rf"\s*(?:{command})(?![A-Za-z])\s*")
        )
        if len(parts) > 1:
            operands = [_as_set(trim(part), depth + 1) for part in parts]
            if all(s is not None for s in operands):
                return _region(combine(*operands))
            return []
    return []


def _as_set(text: str, depth: int) -> Any:
    text = re.sub(r"^\{(.*)\}$", r"\\{\1\\}", text)
    for value in _read(text, depth):
        if isinstance(value, Region):
            return _sympy_set(value)
        if isinstance(value, Series) and value.brackets == "{}":
            return _finite_set(value)
    return None


def _finite_set(series: Series) -> Any:
    """Return the numbers of a list as a set; None if an item is no number."""
    numbers = [first_of(Number, item) for item in series.items]
    if None in numbers:
        return None
    return sympy.FiniteSet(*(number.value for number in numbers if number is not None))


def _sympy_set(region: Region) -> Any:
    return sympy.Union(*(sympy.Interval(*interval) for interval in region.intervals))


def _region(region: Any) -> list[Reading]:
    """Return a set of real numbers as intervals; [] if it is something else."""
    if region is sympy.S.EmptySet:
        return [Series((), "{}")]
    intervals: list[tuple[Any, Any, bool, bool]] = []
    for part in region.args if isinstance(region, sympy.Union) else (region,):
        if isinstance(part, sympy.Interval):  # sympy.S.Reals is one
            intervals.append((part.start, part.end, bool(part.left_open), bool(part.right_open)))
        elif isinstance(part, sympy.FiniteSet):
            intervals += [(value, value, False, False) for value in part]
        else:
            return []
    return [Region(tuple(sorted(intervals, key=lambda interval: interval[0])))]


# ---- equations and inequalities ---------------------------------------------------------------------------

_RELATION = re.compile(r"\s*(\\(?:le|ge|ne|approx|in|to|equiv)(?![A-Za-z])|[<>=])\s*")
_NAME = re.compile(
    r"\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?'*|\\?[A-Za-z]\w*'*(?:\^\{?-1\}?)?\s*(?:_(?:\{[^{}]*\}|\w))?\s*\(.*\)|\|[A-Z]+\|"
    r"|(?:\\(?:sin|cos|tan|cot)\s*)?\\angle\s*[A-Z]+|\\(?:sin|cos|tan|cot)\s*(?:\\[a-z]+|[A-Z]+)"
    r"|\\(?:overline|vec|hat|widehat|bar|triangle|mathrm|mathbb)\s*\{?\s*\w+\s*\}?|[A-Za-z][A-Za-z ]*"
    r"|m\s*\\angle\s*[A-Z]+|\\frac\s*\{\s*d\s*[a-z]\s*\}\s*\{\s*d\s*[a-z]\s*\}|d[a-z]/d[a-z]"
)
_COLON = re.compile(r"([A-Za-z][\w']*(?:\s+[A-Za-z][\w']*)*\s*):\s*(\S.*)")
_POINT = re.compile(r"([A-Z](?:'|_\{\w+\}|_[^\W_]+)*)\s*(\(.*,.*\))")


def _has_relation(text: str) -> bool:
    return bool(separators_outside(text, _RELATION))


def _sides(text: str) -> tuple[list[str], list[str]]:
    """Return the sides of a chain of relations and the relations between them."""
    signs = [match[1] for match in separators_outside(text, _RELATION)]
    return [trim(side) for side in split_outside(text, _RELATION)], signs


def _relation(text: str, depth: int) -> list[Reading]:
    """Read labels, equations, inequalities and orders."""
    match = _POINT.fullmatch(text) or _COLON.fullmatch(text)
    if match:
        return [Labelled({_label(match[1]): (readings(match[2], depth + 1),)})]
    if not _has_relation(text):
        return []
    sides, signs = _sides(text)
    rounded: list[Reading] = []
    while signs and signs[-1] == "\\approx" and sides[0] and (len(signs) > 1 or not _NAME.fullmatch(sides[0])):
        rounded = _read(sides[-1], depth + 1)  # of what stands before it
        sides = sides[:-1]
        signs = signs[:-1]
    if rounded:
        exact = _read(text[: text.rindex("\\approx")].rstrip(), depth + 1)
        if not exact and re.search(r"[A-Za-z]{3} .*\d", sides[0]):
            return []  # "a chance of 5/36 = 0.139" has words before its value
        return [*exact, *rounded]
    if not all(sides):
        return []
    if all(sign in ("=", "\\approx", "\\equiv") for sign in signs):
        return _equal_sides(sides, depth)
    if signs == ["\\in"] and _NAME.fullmatch(sides[0]):
        return [*_read(sides[1], depth + 1), Labelled({_label(sides[0]): (readings(sides[1], depth + 1),)})]
    if signs == ["\\ne"] and (both := _plus_minus(sides[1], depth)):
        zeros = _finite_set(both[0])  # type: ignore[arg-type]
        if zeros is None:
            return []
        return _region(sympy.Complement(sympy.S.Reals, zeros))
    if "=" not in signs and all(re.fullmatch(r"\\?[A-Za-z]+(?:_\{?\w+\}?|\(\w+\))?", side) for side in sides):
        pairs = zip(sides, signs, sides[1:], strict=False)
        return [Chain(frozenset(_oriented(*pair) for pair in pairs))]
    sides = [re.sub(r"^\\?[A-Za-z]+\s*\([A-Za-z]\)$", "x", side) for side in sides]  # g(x) is an unknown of its own
    solutions = [_solved(left, sign, right) for left, sign, right in zip(sides, signs, sides[1:], strict=False)]
    if all(s is not None for s in solutions):
        return _region(sympy.Intersection(*solutions))
    formulas = [to_sympy(side) for side in sides]
    if len(signs) > 1 or signs[0] not in "<>\\le\\ge\\ne" or not all(isinstance(f, sympy.Expr) for f in formulas):
        return []
    (left, right), sign = formulas, signs[0]
    if sign in (">", "\\ge"):
        return [Equation(right - left, {">": "<", "\\ge": "\\le"}[sign])]
    return [Equation(left - right, sign)]


def _oriented(left: str, sign: str, right: str) -> tuple[str, str, str]:
    return {"<": (">", right, left), "\\le": ("\\ge", right, left)}.get(sign, (sign, left, right))


_DESCRIBED = re.compile(rf"^(?:[{ALPHABET}'\u2019]+ )*[{ALPHABET}'\u2019]{{2,}} (?=[A-Za-z]\s*$)")
"""The words before the letter of a label: "the vertical line x"."""


def _label(text: str) -> str:
    text = _DESCRIBED.sub("", text)
    label = re.sub(r"[\s{}\\]|(?:^the )", "", text)
    if re.search(r"[A-Za-z]{2}", label):
        return label.casefold()
    return label


_WORDED = re.compile(r"[A-Za-z]{3} .*\d\s*[a-z]?\s*[-+*^]")
_OPERATION = re.compile(r"[A-Za-z\d]\s*[-+*^]")
_WITHOUT_SPACES = re.compile(r"[\u3000-\u9fff\uac00-\ud7a3]")
"""A letter of a script whose words have no spaces between them."""
_TASK = re.compile(
    r"\\(?:int|oint|lim|sum|prod)(?![A-Za-z])|\\frac\s*\{\s*(?:d|\\partial)\s*\}\s*\{\s*(?:d|\\partial)\s*[a-z]\s*\}"
)
"""What is to be computed, on the left of its result."""


def _is_worded(text: str) -> bool:
    """Return whether words stand before a formula: together they are no name."""
    formula = _OPERATION.search(text)
    if formula and _WITHOUT_SPACES.search(text[: formula.start()]):
        return True
    return _WORDED.search(text) is not None


def _equal_sides(sides: Sequence[str], depth: int) -> list[Reading]:
    first = _DESCRIBED.sub("", sides[0])
    last = sides[-1]
    if re.fullmatch(r"\(.*,.*\)", first) and re.fullmatch(r"\(.*,.*\)", last):
        names, values = (split_outside(side[1:-1], re.compile(r"\s*,\s*")) for side in (first, last))
        if len(names) == len(values) and all(_NAME.fullmatch(name.strip()) for name in names):
            return [
                Labelled({_label(n): (readings(v, depth + 1),) for n, v in zip(names, values, strict=True)}),
                *_read(last, depth + 1),
            ]
    results: list[Reading] = []
    if _NAME.fullmatch(first):
        results.append(Labelled({_label(first): (readings(last, depth + 1),)}))
    elif len(sides) == 2 and _NAME.fullmatch(last) and not _NAME.fullmatch(first):
        results.append(Labelled({_label(last): (readings(first, depth + 1),)}))
    elif (
        to_sympy(first) is None and not _is_worded(first) and read_constant(last) is not None
    ):  # the name of a sum, a determinant, ...
        results.append(Labelled({_label(first): (readings(last, depth + 1),)}))
    elif (
        len(sides) > 2
        or (_is_numeral(first) and _is_numeral(last))
        or (_TASK.search(first) and to_sympy(first) is None)
        or (read_constant(first.replace("%", "")) is not None and _is_constant(last, depth))
    ):
        return _read(last, depth + 1)
    formulas = [to_sympy(side) for side in (first, last)]
    if len(sides) == 2 and all(isinstance(f, sympy.Expr) for f in formulas):
        total = next((f for f in formulas if not f.free_symbols), None)
        difference = formulas[0] - formulas[1]
        results.append(Equation(difference, total=total))
        if total is None and not _NAME.fullmatch(first) and sympy.expand(difference) == 0:
            results += _read(last, depth + 1)  # a step of a transformation
    return results


def _is_numeral(text: str) -> bool:
    """Return True for a numeral with its base."""
    return any(isinstance(value, Parts) and value.kind == "numeral" for value in read_parts(text))


def _is_constant(text: str, depth: int) -> bool:
    """Return True for a number, also with a unit or percent sign."""
    return any(isinstance(value, Number | Quantity | Percentage) for value in _read(text, depth + 1))


def _solved(left: str, sign: str, right: str) -> Any:
    """Return the real solutions of one relation in one variable; None if they are unknown."""
    sides = [to_sympy(side) for side in (left, right)]
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
        if isinstance(zeros, sympy.FiniteSet):
            return sympy.Complement(sympy.S.Reals, zeros)
        return None
    if slope.is_number and slope.is_real and slope != 0:
        zero = -difference.subs(x, 0) / slope
        is_below = (sign in ("<", "\\le")) == bool(slope > 0)
        is_open = sign in "<>"
        if is_below:
            return sympy.Interval(-sympy.oo, zero, True, is_open)
        return sympy.Interval(zero, sympy.oo, is_open)
    relation = {"<": sympy.Lt, ">": sympy.Gt, "\\le": sympy.Le, "\\ge": sympy.Ge}.get(sign)
    bare = difference.replace(sympy.Abs, lambda inside: inside)
    if relation is None or not bare.is_polynomial(x) or sympy.degree(bare, x) > 4:
        return None
    return sympy.solve_univariate_inequality(relation(difference, 0), x, relational=False)


def _plus_minus(text: str, depth: int) -> list[Reading]:
    """Read `a \\pm b` as a - b and a + b."""
    if not re.search(r"\\[pm][pm](?![A-Za-z])", text):
        return []
    upper = re.sub(r"\\mp(?![A-Za-z])\s*", "-", re.sub(r"\\pm(?![A-Za-z])\s*", "+", text))
    lower = re.sub(r"\\mp(?![A-Za-z])\s*", "+", re.sub(r"\\pm(?![A-Za-z])\s*", "-", text))
    return [Series(tuple(readings(form.removeprefix("+"), depth + 1) for form in (upper, lower)))]
