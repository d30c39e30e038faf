"""The options of multiple-choice questions, in the forms that data sets hold them, and the answer that names one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from string import ascii_uppercase
from typing import Any, NamedTuple

from lit_rlvr.common.columns import as_python, parse_text
from lit_rlvr.datamodules.reading.cells import BadRow, as_text, is_blank, without_tags

KNOWN_FORMS = (
    'a list of texts, {"A": ...}, a list of {"label", "text"}, {"label": [...], "text": [...]}, JSON text of one of '
    "these, or lines that begin with A), B), ..."
)
TEXT_KEYS = ("text", "content", "value", "option", "choice", "answer", "description", "option_text")
LABEL_KEYS = ("label", "key", "letter", "id", "name", "index", "option_id", "option")

_COLUMN = re.compile(r"(?:(?:options?|choices?|answers?|endings?|op)[ _-]?)([A-J]|\d{1,2})|([A-J])", re.IGNORECASE)
_CLOSING = r"[).:\]\u3001\uff09\uff0e\uff1a]"
_LABELLED = re.compile(
    rf"\s*[(\[\uff08]?\s*([A-Za-z](?=\s*{_CLOSING})|\d{{1,2}}(?=\s*{_CLOSING}+\s))\s*{_CLOSING}+\s*(\S.*)", re.DOTALL
)
_LABEL = re.compile(r"(?:option|choice|answer)?[\s:]*[(\[]?\s*([A-Za-z]|\d{1,2})\s*[)\].:]*", re.IGNORECASE)
_MARKUP = re.compile(r"\\(?:boxed|text|textbf|mathrm)\s*\{([^{}]*)\}|[$*]")


class Options(NamedTuple):
    """The options of a question.

    Args:
        texts: their texts, in the order A, B, ...
        labels: the names that the data give them ("A", "1"), upper-case; () = none.
    """

    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def read_options(value: Any) -> Options:
    """Read a cell as options, without the None that fills up a column and without the letters of their own.

    Raises:
        BadRow: they are in no known form, or one is missing between others.
    """
    value = parse_text(as_python(value))
    if is_blank(value):
        return Options()
    if isinstance(value, str):
        value = value.strip().splitlines()
        if len(value) < 2 or not _split_labels(value)[1]:
            raise BadRow(f"text in no known form; the known forms are {KNOWN_FORMS}", "options")
    labels: Sequence[Any] = ()
    if isinstance(value, Mapping):
        texts = next((value[key] for key in TEXT_KEYS if isinstance(as_python(value.get(key)), list | tuple)), None)
        if texts is not None:
            labels = next((as_python(value[key]) for key in LABEL_KEYS if not is_blank(value.get(key))), ())
            value = as_python(texts)
        else:
            labelled = []
            for name, text in value.items():
                labelled.append((_column_label(str(name)), text))
            value, labels = _ordered(labelled)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        pairs = []
        for item in value:
            if item is not None:
                pairs.append(_pair(item))
        labels = [label for label, _ in pairs]
        value = [text for _, text in pairs]
        labels = () if None in labels else labels
    if not isinstance(value, list | tuple):
        raise BadRow(f"{type(value).__name__} in no known form; the known forms are {KNOWN_FORMS}", "options")
    return _options(value, [str(as_python(label)).strip().upper() for label in labels])


def options_in_columns(row: Mapping[str, Any]) -> Options:
    """Read options that have a column each: "A", "option_a", "Option 1", "choice1", "opa", "ending0".

    Raises:
        BadRow: one is missing between others.
    """
    kinds: dict[str, list[tuple[str, Any]]] = {}
    for name, cell in row.items():
        match = _COLUMN.fullmatch(str(name))
        if match:
            label = match[1] or match[2]
            kinds.setdefault(str(name).lower().removesuffix(label.lower()), []).append((label, cell))
    columns = max(kinds.values(), key=len, default=[])
    if len(columns) > 1:
        return _options(*_ordered(columns))
    return Options()


def _options(values: Sequence[Any], labels: Sequence[str]) -> Options:
    """Return the options without blank ones at their end; `labels` are empty or one for each."""
    blank = [is_blank(value) for value in values]
    count = len(blank) - blank[::-1].index(False) if False in blank else 0
    if any(blank[:count]):
        raise BadRow(f"option {ascii_uppercase[blank.index(True) % 26]} is missing, but a later one is not", "options")
    if any(isinstance(as_python(value), list | tuple | Mapping) for value in values[:count]):
        raise BadRow(f"an option is no text; the known forms are {KNOWN_FORMS}", "options")
    texts = []
    for value in values[:count]:
        texts.append(as_text(value, "options").strip())
    if len(labels) < count:
        labels = []
    bodies, stripped = _split_labels(texts)
    return Options(tuple(bodies), tuple(labels[:count] or stripped))


def _split_labels(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the texts without their letters A, B, ... or numbers 1, 2, ..., and these; unchanged if one has none."""
    matches = [_LABELLED.fullmatch(text) for text in texts]
    labels = []
    for match in matches:
        if match:
            labels.append(match[1].upper())
    wanted = ([*ascii_uppercase[: len(texts)]], [str(n) for n in range(1, len(texts) + 1)])
    if len(texts) < 2 or labels not in wanted:
        return list(texts), []
    return [match[2].strip() for match in matches if match], labels


def _ordered(pairs: Sequence[tuple[str, Any]]) -> tuple[list[Any], list[str]]:
    """Return texts and labels in the order of the labels, which are letters from A or numbers from 0 or 1."""
    by_label = {}
    for label, text in pairs:
        by_label[label.upper()] = text
    labels = sorted(by_label, key=lambda label: (len(label), label))
    count = len(labels)
    from_zero = []
    for number in range(count):
        from_zero.append(str(number))
    from_one = []
    for number in range(1, count + 1):
        from_one.append(str(number))
    wanted = ([*ascii_uppercase[:count]], from_zero, from_one)
    if labels not in wanted:
        raise BadRow(f"the names {', '.join(labels)} are no letters from A or numbers from 0 or 1", "options")
    return [by_label[label] for label in labels], labels


def _column_label(name: str) -> str:
    """Return the label in a name such as "A", "(a)", "1", "option_b"."""
    match = _COLUMN.fullmatch(name.strip()) or _LABEL.fullmatch(name.strip())
    if match:
        for group in match.groups():
            if group:
                return group
        return name
    return name


def _pair(item: Any) -> tuple[Any, Any]:
    """Return the label, or None, and the text of an option that is a dict."""
    if isinstance(item, Mapping):
        text = next((key for key in TEXT_KEYS if key in item), None)
        if text is not None:
            return next((item[key] for key in LABEL_KEYS if key != text and item.get(key) is not None), None), item[
                text
            ]
        if len(item) == 1:
            return next(iter(item.items()))
    raise BadRow(f"an option is no text; the known forms are {KNOWN_FORMS}", "options")


def format_options(options: Sequence[str]) -> str:
    """List the options, one per line: "A) first"."""
    lines = []
    for letter, option in zip(ascii_uppercase, options, strict=False):
        lines.append(f"{letter}) {option}")
    return "\n".join(lines)


def find_letter(answer: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option whose text is the answer, ignoring case and outer space; else None."""
    texts = []
    for option in options:
        texts.append(option.strip().lower())
    wanted = answer.strip().lower()
    if wanted in texts:
        return ascii_uppercase[texts.index(wanted)]
    return None


def right_letter(answer: Any, options: Options, is_typed: bool = True) -> str:
    """Return the letter of the right option.

    The answer is the option's label in the data, its letter ("b", "(B)", "B."), its text, its letter and text
    ("B) liver"), or its number from 0. A text that is a number is an option's text if one has it.

    Args:
        answer: the cell with the answer.
        options: the options of the question.
        is_typed: the answer's type tells a text from a number; False for the cells of CSV files.

    Raises:
        BadRow: it names no option, or more than one.
    """
    answer = as_python(answer)
    if isinstance(answer, str) and find_letter(answer, options.texts) is None:
        answer = parse_text(answer)
    if isinstance(answer, list | tuple) and not is_blank(answer):
        letters = set()
        for item in answer:
            letters.add(right_letter(item, options, is_typed))
        if len(letters) > 1:
            raise BadRow(f"{', '.join(sorted(letters))} are all right, but one option must be", "answer")
        return letters.pop()
    texts = options.texts
    text = without_tags(as_text(answer, "answer"), "answer").strip()
    if text.isdecimal() and int(text) < len(texts):
        number = ascii_uppercase[int(text)]
    else:
        number = None
    if isinstance(answer, bool):
        candidates = {find_letter(text, texts) or find_letter("yes" if answer else "no", texts)}
    elif isinstance(answer, int | float | Decimal):
        candidates = {find_label(text, options) if text in options.labels else number}
    else:
        candidates = {find_letter(text, texts), find_label(text, options)} - {None}
        if not candidates or (not is_typed and text not in options.labels):
            candidates.add(number)
    named = sorted(letter for letter in candidates if letter)
    if len(named) == 1:
        return named[0]
    if named:
        forms = []
        for letter in named:
            forms.append(f"'{letter}) {texts[ascii_uppercase.index(letter)]}'")
        raise BadRow(f"{text!r} may be two options; write {' or '.join(forms)}", "answer")
    raise BadRow(
        f"{answer!r} is neither the letter, the text nor the number, from 0, of one of {len(texts)} options", "answer"
    )


def find_label(text: str, options: Options) -> str | None:
    """Return the letter of the option that a text names by its label or letter, alone or before the option's text."""
    text = unicodedata.normalize("NFKC", _MARKUP.sub(r"\1", text)).strip()
    match = _LABEL.fullmatch(text) or _LABELLED.fullmatch(text)
    if match is None:
        return None
    label = match[1].upper()
    letters = [*ascii_uppercase[: len(options.texts)]]
    names = options.labels if label in options.labels else letters
    if label not in names:
        return None
    letter = letters[names.index(label)]
    rest = match[2] if match.re is _LABELLED else ""
    option = unicodedata.normalize("NFKC", options.texts[names.index(label)])
    if rest.strip().lower() in ("", option.strip().lower()):
        return letter
    return None
