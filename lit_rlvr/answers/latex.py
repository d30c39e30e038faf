"""LaTeX without what only changes how it looks, and its brackets and separators."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from lit_rlvr.answers.characters import plain_characters, with_carets

COMMAS = re.compile(
    r"\s*(?:[,;]|\\\\)\s*(?:(?:and|or)\b\s*)?|\s*(?:\band\b|\bor\b|&|\\(?:or|and|land|lor)(?![A-Za-z]))\s*"
)
_GROUPS = re.compile(r"(?<=\d)(?:\\[,;:! ]|\{,\}|\\?,\\!\s*|(?<![.\d]\d\d\d\d) )(?=\d{3}(?!\d))")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\\[,;:! ]|\{,\}|,\\!\s*| )\d{3})+(?![\d/])")
_STYLES = re.compile(
    r"\\(?:tag\s*\{[^{}]*\}|hspace\*?\s*\{[^{}]*\}|[Hh]uge|LARGE|checkmark|blacksquare|square|qed|nolimits|left|right|displaystyle|textstyle|limits|[Bb]igg?[lrm]?|large|Large|bf|rm|it|sf|tt|cal|textcolor\s*\{[^{}]*\}"
    r"|color\s*\{[^{}]*\}|[hv]?phantom\s*(?:\{[^{}]*\}|-?\w))(?![A-Za-z])"
)
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm|mbox|hbox|fbox|f?boxed|emph"
    r"|underline|operatorname\*?|ensuremath|textsc|pmb|cancel)\s*\{"
)
_REPLACED: tuple[tuple[str, str, str | Callable[[re.Match[str]], str]], ...] = (
    ("\\", r"\\(?:lbrace|\{)(?![A-Za-z])", r"\\{"), ("\\", r"\\(?:rbrace|\})(?![A-Za-z])", r"\\}"),
    ("\\", r"\\(?:langle|lbrack)(?![A-Za-z])", lambda m: "(" if "angle" in m[0] else "["),
    ("\\", r"\\(?:rangle|rbrack)(?![A-Za-z])", lambda m: ")" if "angle" in m[0] else "]"),
    ("<", r"(?<![\w)}])<\s*(-?[\d./]+(?:\s*,\s*-?[\d./]+)+)\s*>", r"(\1)"),
    ("\\", r"\\ce(?=\s*\{)", r"\\mathrm"),
    ("half", r"(?<=\d)\s+and\s+(?:a|one)\s+half(?![A-Za-z])", " 1/2"),
    ("quarter", r"(?<=\d)\s+and\s+(?:a|one)\s+quarter(?![A-Za-z])", " 1/4"),
    ("\\", r"\\(?:[dtcs]|nice)frac(?![A-Za-z])", r"\\frac"),
    ("{", r"\{([:,.])\}", r"\1"), ("\\", r"\bUS\s*\\\$", r"\\$"), ("\\", r"\\pounds(?![A-Za-z])", "GBP "),
    ("", r"(?i:\binfinity\b)", r"\\infty "),
    ("\\", r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}", r"\\binom{\1}{\2}"),
    ("\\", r"^(\w+)\s*\\choose\s*(\w+)$", r"\\binom{\1}{\2}"),
    (
        "C_", r"\{\}?\s*\^\s*\{?(\d+)\}?\s*C_\{?(\d+)\}?|(?<![\w}])\^\s*\{?(\d+)\}?\s*C_\{?(\d+)\}?",
        r"\\binom{\1\3}{\2\4}",
    ),
    ("\\", r"\\[()\[\]]", " "), ("\\", r"\\%", "%"), ("per", r"\bper ?cent\b|\bpercent(?:age)?\b", "%"),
    ("\\", r"\\(?:leq?q?(?:slant)?)(?![A-Za-z])", r"\\le "), ("=", r"<=|=<", r"\\le "),
    ("\\", r"\\(?:geq?q?(?:slant)?)(?![A-Za-z])", r"\\ge "), (">=", r">=", r"\\ge "),
    ("\\", r"\\lt(?![A-Za-z])", "<"), ("\\", r"\\gt(?![A-Za-z])", ">"),
    ("\\", r"\\(?:neq?|not\s*=)(?![A-Za-z])", r"\\ne "), ("!=", r"!=", r"\\ne "),
    ("\\", r"\\(?:approx|simeq|cong|doteq)(?![A-Za-z])", r"\\approx "), ("~=", r"~=", r"\\approx "),
    ("\\", r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset "),
    ("\\", r"\\(?:back)?slash(?![A-Za-z])|(?<=[\])}RZ])\s*\\(?![A-Za-z,;:! {}])", r"\\setminus "),
    (
        "\\", r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))|\\degree(?![A-Za-z])",
        r"^\\circ ",
    ),
    ("\\", r"\\(?:l|c|d|v)dots(?![A-Za-z])", r"\\dots "), ("...", r"\.\.\.", r"\\dots "),
    ("\\", r"\\(?:quad|qquad|thinspace|,|;|:|!|\s)", " "),
    ("~", r"(?<=\d)~(?=\d{3}(?!\d))", ""), ("~", r"~", " "),
    ("\\", r"\\(?:rightarrow|longrightarrow|implies|Rightarrow)(?![A-Za-z])", r"\\to "), ("->", r"-+>", r"\\to "),
    ("\\", r"\\mid(?![A-Za-z])", "|"),
    ("\\", r"\\(?:wedge|land)(?![A-Za-z])", " and "), ("\\", r"\\(?:vee|lor)(?![A-Za-z])", " or "),
    ("\\", r"\\[lr]?vert(?![A-Za-z])", "|"),
    ("\\", r"\\(?:hat|vec|mathbf)\s*\{?\s*\\?([ijk])(?:math)?(?![A-Za-z])\s*\}?", r"\1"), ("{,}", r"\{,\}", ","),
    ("^", r"(?<=\d)\s*\^\s*\{?\s*(st|nd|rd|th)\s*\}?", r"\1"),
    ("^", r"\s*\^\s*", "^"), ("**", r"\*\*(?=[\d({-])", "^"),
    ("\\", r"\\(?:ast|star)(?![A-Za-z])", "*"), ("\\", r"\\colon(?![A-Za-z])", ":"),
    ("U", r"(?<=[\])])\s*U\s*(?=[\[(])", r"\\cup "),
)  # fmt: skip
"""Characters that a text must have, a pattern, and what stands in its place."""
_REPLACEMENTS = [(needed, re.compile(pattern), new) for needed, pattern, new in _REPLACED]
_LEAD = re.compile(
    r"(?i)(?:on|the)\s+(?=\d+(?:st|nd|rd|th))|(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the|our|my)\s+)?(?:(?:final|correct)\s+)?(?:answers?|results?|"
    r"solutions?|values?)\s*(?:is|are|=|:)\s*|(?:is|are|equals?|approximately|approx\.?|about|roughly|exactly|only)\s+"
    r"|(?:so|thus|hence|therefore|then|finally),?\s+(?=[$\\(\d]|[A-Za-z]\s*=)"
    r"|(?:\\approx|\\equiv(?=\s*\d+$)|=)\s*|\u7ea6|\u5171"
)
_REMARK = re.compile(
    r"(?<=[\s\d}])\((?![^()]*\bmod\b|(?:i{1,3}|iv|vi{0,3})\))(?=[^(),\\]*[A-Za-z]{2})[^(),\\+*/^=]*\)\s*$"
)
_OUTWARD = re.compile(r"(?:(?<=^)|(?<=\\cup )|(?<=\\in ))(?:(\])([^][]+,[^][]+)([][])|(\[)([^][]+,[^][]+)(\[))")
"""Intervals with brackets that look outwards where they are open: ]0,1[."""
_REALS = re.compile(
    r"\\(?:mathbb|Bbb|mathbf)\s*\{?\s*R\s*\}?(?![A-Za-z])|\\(?:R|reals)(?![A-Za-z])|(?i:\ball real numbers\b)"
)
_EXCEPT = re.compile(r"(?<=mathbb\{R\})\s*,?\s*(?:except|excluding|other than|but not)\s*(?:for\s+)?(?:x\s*=\s*)?(.+)$")
_ENVIRONMENT = re.compile(
    r"(?:\\\{\s*)?\\begin\s*\{(cases|aligned|align\*?|gathered|split|array)\}\s*(?:\{[^{}]*\})?(.*?)\\end\s*\{\1\}(?:\s*\.)?",
    re.DOTALL,
)
"""Several equations below each other; an `array` may be a matrix."""
_PARTS = re.compile(r"\s*[,;]?\s*\((?:[a-e]|i{1,3}|iv|v)\)\s*")
_PARAMETER = re.compile(
    r"[,;]?\s*\(?\s*(?:(?:where|for|with|and)\s+)?(?:any\s+|all\s+)?([a-z])\s*(?:\\in\s*(?:\\mathbb\s*\{?\s*[ZNQ]\s*\}?|Z|N)(?:\^[+*])?"
    r"|is\s+an?y?\s+(?:arbitrary\s+)?(?:integer|constant|natural number)[a-z ]*)\s*\)?\s*$"
)
"""The end of an answer that declares a letter to be any integer or constant."""
_ANY = re.compile(
    r"[,;]?\s*\b(?:for|where|with)\s+(?:any|some|all)\s+(?:[a-z]+\s+)?[a-z](?:\s*[<>]\s*0)?$"
    r"|,\s*(?:where\s+)?[a-dkCK]\s*\\in\s*\\mathbb\s*\{R\}$"
)
"""The end of an answer that says of a letter only that it is free."""
_US_DOLLAR = re.compile(r"\bUS\s*\\?\$")
_SET = re.compile(r"\{\s*[a-z]\s*[|:]")
"""The beginning of a set by its condition: "{x | x > 0}"."""
_ENDS = " \t\r\n.,;:"


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """Return the text without what only changes how LaTeX looks: sizes, colours, fonts, spaces, delimiters."""
    text = _THOUSANDS.sub(
        lambda match: re.sub(r"\D", "", match[0]), _GROUPS.sub("", plain_characters(text).strip().rstrip("\\"))
    )
    text = _ENVIRONMENT.sub(_rows, _STYLES.sub(" ", _REALS.sub(r"\\mathbb{R}", text)))
    text = _unwrapped(text)
    text = re.sub(r"\\\\\s*(?:\[[\d.\s]*[a-z]{2}\])?", "\x00", text)  # the end of a matrix's row
    for needed, pattern, new in _REPLACEMENTS:
        if needed in text:
            text = pattern.sub(new, text)
    text = text.replace("\x00", "\\\\")
    text = with_carets(_US_DOLLAR.sub("$", text))
    text = re.sub(r"\\\$", " USD ", re.sub(r"\*\*|__|`|\\\\\s*$", " ", text))
    if text.count("$") % 2 == 0:
        text = text.replace("$", " ")
    else:
        text = re.sub(r"\$(?=\s*[-\d.])", " USD ", text)
    text = _OUTWARD.sub(_inward, trim(text))
    parameter = _PARAMETER.search(text)
    if parameter and parameter.start():
        text = re.sub(rf"(?<![A-Za-z\\]){parameter[1]}(?![A-Za-z])", "n", trim(text[: parameter.start()]))
    text = _ANY.sub("", text)
    text = _EXCEPT.sub(r" \\setminus \\{\1\\}", text)
    if len(_PARTS.findall(text)) > 1 and re.search(r"\w", _PARTS.sub("", text).replace("and", "").replace("or", "")):
        text = f"({trim(_PARTS.sub(', ', text)).lstrip(', ')})"
    text = re.sub(r"^(?i:minus|negative)\s+(?=[\d\\(])", "-", text)
    while lead := _LEAD.match(text):
        text = trim(text[lead.end() :])
    is_set = _SET.match(text) is not None
    if (
        text[:1] == "{"
        and not is_set
        and closing_bracket(text, 0) == len(text) - 1
        and not split_outside(text[1:-1], COMMAS)[1:]
    ):
        text = trim(text[1:-1])
    remark = _REMARK.search(text)
    if remark is None or not remark.start():
        return text
    return trim(text[: remark.start()])


def _rows(match: re.Match[str]) -> str:
    """Return the rows of an environment with commas between; a matrix as it is."""
    if match[1] == "array" and "=" not in match[2] and re.search(r"&|\\\\\s*\S", match[2]):
        return match[0]
    return re.sub(r"\\\\\s*(?:\[[^][]*\])?", ", ", match[2].replace("&", " ").strip()).strip(", ")


def _inward(match: re.Match[str]) -> str:
    if match[1]:
        return f"({match[2]}{')' if match[3] == '[' else ']'}"
    return f"[{match[5]})"


def trim(text: str) -> str:
    """Return LaTeX without outer space and signs that end a sentence, each space inside once."""
    text = " ".join(text.split())
    if not text.endswith("\\dots"):
        return text.rstrip(_ENDS + "\\").strip()
    return text


def _unwrapped(text: str) -> str:
    """Return the text with the contents of `\\text{...}` and its like, with spaces around them, in their place."""
    while (match := _WRAPPED.search(text)) is not None:
        end = closing_bracket(text, match.end() - 1)
        inside = text[match.end() : end if end > 0 else len(text)]
        if end > 0 and inside in ("k", "K", "M", "B"):  # thousand, million
            text = f"{text[: match.start()].rstrip()}{inside} {text[end + 1 :]}"
            continue
        text = f"{text[: match.start()]} {inside} {text[end + 1 :] if end > 0 else ''}"
    return text


BRACKETS = {"(": ")", "[": "]", "{": "}"}
_BRACKET = re.compile(r"[()\[\]{}]")


def closing_bracket(text: str, start: int) -> int:
    """Return where the bracket at `start` closes, counting brackets of its kind; -1 if nowhere."""
    opening = text[start]
    closing = BRACKETS[text[start]]
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == opening) - (text[position] == closing)
        if not depth:
            return position
    return -1


def separators_outside(text: str, separator: re.Pattern[str]) -> list[re.Match[str]]:
    """Return the separators that stand outside brackets; brackets of intervals need not match."""
    separators = []
    depth = 0
    match = separator.search(text)
    bracket = _BRACKET.search(text)
    while match:
        if bracket and (depth or bracket.start() < match.start()):
            depth = max(depth + (1 if bracket[0] in "([{" else -1), 0)
            position = bracket.end()
        elif depth:
            break
        else:
            separators.append(match)
            position = match.end()
        if match.start() < position:
            match = separator.search(text, position)
        if bracket and bracket.start() < position:
            bracket = _BRACKET.search(text, position)
    return separators


def split_outside(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split at separators that stand outside brackets."""
    matches = separators_outside(text, separator)
    starts = [0, *(match.end() for match in matches)]
    ends = [*(match.start() for match in matches), len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]
