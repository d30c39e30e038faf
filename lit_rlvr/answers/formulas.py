"""Formulas as sympy objects, by Math-Verify's parser of LaTeX."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, _Latex2Sympy, normalize_latex

from lit_rlvr.answers.latex import trim
from lit_rlvr.answers.values import Expression, Matrix, Number, Reading

FUNCTIONS = (
    "sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|arcsin|arccos|arctan|asin|acos|atan|log|ln|lg|exp|sqrt|det|gcd|lcm|max|min|"
    "lim|mod|deg|dim|ker|arg|abs"
)
"""Names of functions, as a regular expression."""
LETTER_NAMES = "alpha|beta|gamma|delta|theta|lambda|sigma|omega|phi|rho|mu|pi|frac"
"""Names of letters and commands that stand without their backslash, as a regular expression."""
_CONFIG = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)


_TASKS = (sympy.Integral, sympy.Limit, sympy.Sum, sympy.Product, sympy.Derivative)
"""Operations that an answer has to carry out. A formula with one of them is compared as text."""


class _Converter(_Latex2Sympy):
    """Math-Verify's converter with exact decimals, and without the `eval` with which sympy reads numbers."""

    def parse_number(self, text: str) -> sympy.Rational:
        return sympy.Rational(text.replace(",", ""))


_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_WORDS = re.compile(
    r"(?i:is|it|of|to|in|at|on|by|or|an|as|be|so|we|he|no|if|the|and|are|was|for|has|not|but|you|she|his|her)"
    r"|[A-Za-z]{4,}|[A-Z](?=[a-z]*[aeiou])[a-z]{2}"
)
_CODE = re.compile(r"[A-Z](?:[A-Za-z0-9]|_\{\w+\}|_[^\W_][^\W_A-Za-z0-9]*)*")
_TIDIED = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
        (r"(?<!\d)\.(?=\d)", "0."), (r"(?<=\d)\.(?=\s*[-+*/)]|$)", ""),
        (r"\*", r"\\cdot "),
        (rf"(?<![\\A-Za-z])({FUNCTIONS}|pi|theta|alpha|beta)(?![A-Za-z])", r"\\\1"),
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
        (r"\\gamma(?![A-Za-z])", r"g_{amma}"), (r"(?<=\d)\s*\\binom", r" \\cdot \\binom"),
        (r"(?<=[A-Za-z])(?:\^\{?\\prime\}?|')", r"_{prime}"),
        (r"\\exp\s*\(([^()]*)\)", r"e^{\1}"), (r"\\mathbb\{[A-Z]\}", r"\\unknown"),
    )
]  # fmt: skip


def is_code(text: str) -> bool:
    """Return True for a word or a code ("ABC", "CO_2"), which is no product of its letters."""
    return _CODE.fullmatch(text) is not None and len(re.sub(r"_(?:\{[^{}]*\}|\w)", "", text)) > 1


_COMPLEX = re.compile(r"(-?\s*(?:\d+(?:\.\d+)?\s*[-+]\s*)(?:\d+(?:\.\d+)?)?)\s*j")
"""A complex number as engineers and Python write it: "3 + 4j"."""


def read_formula(text: str) -> list[Reading]:
    """Read a formula: a constant, an expression with variables or a matrix."""
    engineers = _COMPLEX.fullmatch(text)
    if engineers:
        text = f"{engineers[1]}i"
    if is_code(text):
        return []
    is_spelt = re.fullmatch(r"[a-z]{2,}", text) is not None
    if is_spelt and len(text) > 3 and set(text) - set("xyz"):
        return []
    value = to_sympy(text)
    if value is None:
        return []
    if isinstance(value, sympy.MatrixBase):
        return [Matrix(value)]
    if value.free_symbols:
        return [Expression(value, is_spelt and bool(set(text) - set("xyz")))]
    if not is_spelt:
        return [Number(value)]
    return []


@lru_cache(maxsize=4096)
def to_sympy(text: str) -> Any:
    """Return the sympy object of a LaTeX or plain formula; None if it is none."""
    text = trim(text)
    infinite = re.fullmatch(r"([-+]?)\s*\\infty", text)
    if infinite:
        if infinite[1] == "-":
            return -sympy.oo
        return sympy.oo
    if (
        not text
        or _is_wordy(text)
        or re.search(r"(?:gcd|lcm)\W.*[A-Za-z]", text)  # of polynomials, to sympy
        or re.search(r"[^\x00-\x7f]|\\dots|[=<>&;:?\"@#$%]", re.sub(r"\\begin.*\\end", "", text))
    ):
        return None
    for pattern, new in _TIDIED:
        text = pattern.sub(new, text)
    try:
        value = _Converter(config=_CONFIG).parse(normalize_latex(text, NormalizationConfig()))
        if value.has(*_TASKS):
            return None
        if isinstance(value, sympy.MatMul | sympy.MatAdd):
            value = value.doit()
        if isinstance(value, sympy.Expr):
            value = _settled(value)
    except MemoryError:
        raise
    except Exception:  # the parser and sympy raise anything on odd texts, which then are no formula
        return None
    if isinstance(value, sympy.MatrixBase) or (type(value) is not sympy.Matrix and isinstance(value, sympy.Expr)):
        return value
    return None


def _settled(value: Any) -> Any:
    """Return an expression with `i` as the imaginary unit and unevaluated parts computed."""
    value = value.replace(lambda part: isinstance(part, sympy.UnevaluatedExpr), lambda part: part.args[0])
    if sympy.Symbol("i") in value.free_symbols:
        return value.subs(sympy.Symbol("i"), sympy.I)
    return value


_SPELT = rf"(?!(?:{FUNCTIONS})\b)[A-Za-z][a-z]+"
_SENTENCE = re.compile(rf"(?:^|\s){_SPELT}\s(?:.*\s)?{_SPELT}[.!]?(?:\s|$)")
"""Two words."""


def _is_wordy(text: str) -> bool:
    """Return True for a text with words, which would become products of their letters."""
    if "\\begin" in text:
        return False
    if _SENTENCE.search(text):
        return True
    words = _WORD.findall(re.sub(r"\\[A-Za-z]+|(?<=\^\{)[^{}]*(?=\})", " ", text))
    return any(_WORDS.fullmatch(word) and not re.fullmatch(f"{FUNCTIONS}|{LETTER_NAMES}", word) for word in words)
