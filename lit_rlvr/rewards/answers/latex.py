"""LaTeX without what only changes how it looks, and its brackets and separators."""

from __future__ import annotations

import re
from collections.abc import Callable

from lit_rlvr.rewards.answers.characters import plain_characters

COMMAS = re.compile(
    r"\s*(?:[,;]|\\\\)\s*(?:(?:and|or)\b\s*)?|\s*(?:\band\b|\bor\b|&|\\(?:or|and|land|lor)(?![A-Za-z]))\s*"
)
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
_REPLACED: dict[str, str | Callable[[re.Match[str]], str]] = {
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
    r"\\[lr]?vert(?![A-Za-z])": "|",
    r"\\(?:hat|vec|mathbf)\s*\{?\s*\\?([ijk])(?:math)?(?![A-Za-z])\s*\}?": r"\1", r"\{,\}": ",",
    r"(?<=\d)\s*\^\s*\{?\s*(st|nd|rd|th)\s*\}?": r"\1",
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
    text = _unwrapped(_STYLES.sub(" ", text))
    text = re.sub(r"\\\\\s*(?:\[[\d.\s]*[a-z]{2}\])?", "\x00", text)  # the end of a matrix's row
    for pattern, new in _REPLACEMENTS:
        text = pattern.sub(new, text)
    text = text.replace("\x00", "\\\\")
    text = re.sub(r"\\\$", " USD ", re.sub(r"\*\*|__|`|\\\\\s*$", " ", text))
    text = text.replace("$", " ") if text.count("$") % 2 == 0 else re.sub(r"\$(?=\s*[-\d.])", " USD ", text)
    text = _OUTWARD.sub(_inward, trim(text))
    text = _PARAMETER.sub("", text) or text
    text = re.sub(r"^(?i:minus|negative)\s+(?=[\d\\(])", "-", text)
    while lead := _LEAD.match(text):
        text = trim(text[lead.end() :])
    if text[:1] == "{" and closing_bracket(text, 0) == len(text) - 1 and not split_outside(text[1:-1], COMMAS)[1:]:
        text = trim(text[1:-1])
    return text if (remark := _REMARK.search(text)) is None or not remark.start() else trim(text[: remark.start()])


def _inward(match: re.Match[str]) -> str:
    return f"({match[2]}{')' if match[3] == '[' else ']'}" if match[1] else f"[{match[5]})"


def trim(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip(_ENDS[:4])
    return text.rstrip(_ENDS + "\\").strip() if not text.endswith("\\dots") else text


def _unwrapped(text: str) -> str:
    """Return the text with the contents of `\\text{...}` and its like, with spaces around them, in their place."""
    while (match := _WRAPPED.search(text)) is not None:
        end = closing_bracket(text, match.end() - 1)
        inside = text[match.end() : end if end > 0 else len(text)]
        text = f"{text[: match.start()]} {inside} {text[end + 1 :] if end > 0 else ''}"
    return text


BRACKETS = {"(": ")", "[": "]", "{": "}"}


def closing_bracket(text: str, start: int) -> int:
    """Return where the bracket at `start` closes, counting brackets of its kind; -1 if nowhere."""
    opening, closing, depth = text[start], BRACKETS[text[start]], 0
    for position in range(start, len(text)):
        depth += (text[position] == opening) - (text[position] == closing)
        if not depth:
            return position
    return -1


def split_outside(text: str, separator: re.Pattern[str]) -> list[str]:
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
