"""Gold answers as the check-up of a reward reads them: the kind of an answer, its parts, and its value."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from string import ascii_uppercase
from typing import Literal

from lit_rlvr.types import Sample

Kind = Literal[
    "number", "fraction", "percent", "quantity", "set", "interval", "tuple", "list", "expression", "text", "choice",
    "yes_no", "sql", "code", "other",
]  # fmt: skip
"""The kind of an answer, which decides what a rewrite may do to it; nothing is rewritten inside an "other" one."""

UNITS = {
    "mm": "cm", "cm": "m", "m": "km", "km": "m", "mg": "g", "g": "kg", "kg": "g", "ml": "l", "l": "ml",
    "seconds": "minutes", "minutes": "hours", "hours": "minutes",
}  # fmt: skip
"""Unit -> another unit of the same kind."""

PLAIN_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+"
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_FRACTION = re.compile(
    r"([-+]?)(?:\\[dt]?frac(?:\{(-?\d+)\}\{(\d+)\}|(\d)(\d))|(\d+)\s*/\s*(\d+))"  # \frac{1}{2}, \frac12, 1/2
)
_QUANTITY = re.compile(rf"({PLAIN_NUMBER})\s*(?:\\[,; ])?\s*(?:\\(?:text|mathrm)\{{\s*([a-z]+)\s*\}}|([a-z]+))")
_BRACKETS = re.compile(r"(?:\\left)?\s*(\\\{|[\[({])(.*?)(?:\\right)?\s*(\\\}|[\])}])", re.DOTALL)
_INFINITE = re.compile(r"[-+]?\s*(?:\\infty|\u221e)")
_MATHEMATICS = re.compile(r"[\d\\^_=+*/<>]")


@dataclass(frozen=True)
class Gold:
    """The reference answer of a sample.

    Args:
        sample: the sample that it answers.
        kind: the kind of the answer.
        answer: its text without dollars; of a choice the letter, of code the program.
        write: makes a completion of an answer, in the form that the reward reads.
        others: answers of other rows, of the same kind.
    """

    sample: Sample
    kind: Kind
    answer: str
    write: Callable[[str], str]
    others: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The completion with the answer."""
        return self.write(self.answer)

    @property
    def is_marked(self) -> bool:
        """True if a mark such as a box, tags or a fence sets the answer off from the text around it."""
        return self.text.strip() != self.answer

    @property
    def is_boxed(self) -> bool:
        """True if the completion is the answer in a box."""
        return self.text == f"\\boxed{{{self.answer}}}"

    @property
    def items(self) -> tuple[str, ...]:
        """The parts of a set, interval, tuple or list."""
        return split_items(split_brackets(self.answer)[1])

    @property
    def brackets(self) -> tuple[str, str]:
        """The opening and the closing bracket; empty for a list."""
        opening, _, closing = split_brackets(self.answer)
        return opening, closing

    def with_items(self, items: tuple[str, ...]) -> str:
        """Return the answer with other parts between the same brackets."""
        opening, closing = self.brackets
        return f"{opening}{', '.join(items)}{closing}"


def read_gold(sample: Sample, write: Callable[[str], str]) -> Gold:
    """Read the reference answer of a sample.

    Args:
        sample: the sample.
        write: makes a completion of an answer.
    """
    row = sample.row
    if row.get("tests"):
        return Gold(sample, "code", str(row.get("solution") or ""), write)
    if row.get("databases"):
        return Gold(sample, "sql", sample.answer.strip().rstrip("; \n"), write)
    letter = gold_letter(sample)
    if letter:
        return Gold(sample, "choice", letter, write)
    answer = without_delimiters(sample.answer)
    return Gold(sample, kind_of(answer), answer, write)


def gold_letter(sample: Sample) -> str:
    """Return the letter of the right option; "" if the question is not multiple-choice."""
    letters = ascii_uppercase[: len(sample.options) or 10]
    bare = sample.answer.strip().strip("().")
    if len(bare) == 1 and bare.upper() in letters:
        return bare.upper()
    texts = [comparable(option) for option in sample.options]
    if comparable(sample.answer) in texts:
        return letters[texts.index(comparable(sample.answer))]
    return ""


def without_delimiters(answer: str) -> str:
    """Return an answer without the dollars around it, and without a `\\text{}` that holds all of it."""
    answer = answer.strip()
    for opening, closing in _DELIMITERS:
        inner = answer[len(opening) : -len(closing)]
        if answer.startswith(opening) and answer.endswith(closing) and inner and opening not in inner:
            answer = inner.strip()
    match = re.fullmatch(r"\\(?:text|textbf|mathrm)\{([^{}]*)\}", answer)
    if match:
        return match[1].strip()
    return answer


def kind_of(answer: str) -> Kind:
    """Return the kind of an answer that is neither a choice nor a program."""
    if re.fullmatch(PLAIN_NUMBER, answer):
        return "number"
    if _FRACTION.fullmatch(answer):
        return "fraction"
    if re.fullmatch(rf"(?:{PLAIN_NUMBER})\s*\\?%", answer):
        return "percent"
    if answer.lower() in ("yes", "no"):
        return "yes_no"
    match = _QUANTITY.fullmatch(answer)
    if match and (match[2] or match[3]) in UNITS:
        return "quantity"
    opening, inner, closing = split_brackets(answer)
    items = split_items(inner)
    if len(items) > 1 and all(map(is_item, items)):
        return kind_of_items((opening + closing).replace("\\", ""), items)
    if re.fullmatch(r"[^\W\d_]+(?:[ -][^\W\d_]+)*", answer) and len(answer) > (2 if answer.isupper() else 3):
        return "text"  # shorter ones may be a product
    looks_like_words = re.search(r"(?<!\\)\b[A-Za-z]{3,}", re.sub(r"\\(?:text|mathrm|operatorname)\{", "", answer))
    other_signs = re.search(r"[,=<>:;]|[-+*/^]$|\\[!$%]|\\(?:pm|text|mbox|begin|le|ge|in(?![a-z])|approx)", answer)
    is_whole = answer.count("{") == answer.count("}") and not other_signs
    if _MATHEMATICS.search(answer) and is_whole and not looks_like_words:
        return "expression"
    return "other"


def kind_of_items(brackets: str, items: tuple[str, ...]) -> Kind:
    """Return the kind of several items by the brackets around them."""
    if brackets in ("", "{}", "()") and not any(map(_INFINITE.fullmatch, items)):
        if not brackets:
            return "list"
        if brackets == "{}":
            return "set"
        return "tuple"
    is_interval = len(items) == 2 and brackets in ("()", "[)", "(]")
    # [2, 3] may be an interval or a list
    if is_interval:
        return "interval"
    return "other"


def is_item(item: str) -> bool:
    """Return True for what can be part of a set, interval, tuple or list."""
    return value_of_answer(item) is not None or bool(_INFINITE.fullmatch(item)) or kind_of(item) == "expression"


def split_brackets(answer: str) -> tuple[str, str, str]:
    """Split an answer into its opening bracket, the text between, and its closing bracket.

    Brackets are "" if there are none.
    """
    match = _BRACKETS.fullmatch(answer)
    depth = 0
    for character in match[2] if match else ")":
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:  # "(1, 2), (3, 4)" has no brackets around it
            return "", answer, ""
    return match[1], match[2].strip(), match[3]  # type: ignore[index]


def split_items(text: str) -> tuple[str, ...]:
    """Split a text at its commas outside brackets."""
    depth = 0
    items = [""]
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    return tuple(item.strip() for item in items)


def fraction_parts(answer: str) -> tuple[int, int] | None:
    """Return numerator and denominator of a fraction; None for anything else."""
    match = _FRACTION.fullmatch(answer)
    if match is None:
        return None
    sign, *digits = match.groups()
    above, below = (int(part) for part in digits if part is not None)
    if below:
        return ((-above if sign == "-" else above), below)
    return None


def quantity_parts(answer: str) -> tuple[str, str] | None:
    """Return the number and the unit of a quantity; None for anything else."""
    match = _QUANTITY.fullmatch(answer)
    if match:
        return (match[1], match[2] or match[3])
    return None


def value_of_answer(answer: str) -> Fraction | None:
    """Return the value of a number or a fraction; None for anything else."""
    if re.fullmatch(PLAIN_NUMBER, answer):
        return Fraction(answer.replace(",", ""))
    parts = fraction_parts(answer)
    if parts:
        return Fraction(*parts)
    return None


def comparable(text: str) -> str:
    """Return a text without case, space and outer punctuation, to compare texts."""
    return re.sub(r"\s+", "", text).strip("().$").casefold()


def may_answer(text: str, gold: Gold) -> bool:
    """Return True unless a text is certainly no answer to a gold answer's question.

    A number may equal an expression, and a text may mean the same as another one with common words.
    """
    references = [gold.answer, *gold.sample.references]
    if any(comparable(text) == comparable(reference) for reference in references):
        return True
    value = value_of_answer(text)
    if gold.kind == "choice":
        return comparable(text) == comparable(chosen_option(gold))
    if gold.kind in ("number", "fraction", "percent", "quantity"):
        known = [number for reference in references if (number := value_of_answer(bare_number(reference))) is not None]
        scales = (1, Fraction(1, 100), 100) if gold.kind == "percent" else (1,)
        is_other_form = value is None and any(map(str.isdigit, text))
        return is_other_form or any(value == number * scale for number in known for scale in scales)
    if gold.kind == "text":
        return bool(set(words_of(text)) & {word for reference in references for word in words_of(reference)})
    return gold.kind in ("expression", "other")


def bare_number(answer: str) -> str:
    """Return an answer without its percent sign or unit."""
    parts = quantity_parts(answer)
    if parts:
        return parts[0]
    return without_delimiters(answer).rstrip("\\% ")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"\w+", text.casefold())


def chosen_option(gold: Gold) -> str:
    """Return the text of a choice's right option; its letter without options."""
    options = gold.sample.options
    if options:
        return options[ascii_uppercase.index(gold.answer)]
    return gold.answer
