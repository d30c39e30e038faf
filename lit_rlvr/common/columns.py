"""The reader of columns for all options that name one: nested columns, lists, JSON text, values as Python's."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any

_TEXT = r"""'(?:[^'\\\n]|\\.)*+'|"(?:[^"\\\n]|\\.)*+\""""
_NUMPY_TEXTS = re.compile(rf"\[\s*+(?:{_TEXT})(?:\s*+(?:{_TEXT}))++\s*+\]")
_INDEX = re.compile(r"\[(\d+)\]")


def as_python(value: Any) -> Any:
    """Convert a NumPy scalar or array to a Python value; return any other value as it is."""
    if str(getattr(value, "dtype", "")).startswith("datetime64"):  # in nanoseconds, `tolist` would give an integer
        value = value.astype("datetime64[us]")
    if hasattr(value, "tolist"):
        return value.tolist()
    return value


def is_missing(value: Any) -> bool:
    """Return True for None and for the values that are not equal to themselves: NaN, NaT."""
    return value is None or (isinstance(value, float | Decimal | date) and value != value)


def parse_text(value: Any) -> Any:
    """Return the list or dict that a text holds; return any other value as it is.

    The text is JSON, a Python literal, or an array of texts as NumPy prints it and pandas writes it to CSV files
    ("['a' 'b']", which Python would read as one text).
    """
    text = value.strip() if isinstance(value, str) else ""
    if not text.startswith(("[", "{")):
        return value
    for parse in (_printed_array, json.loads, ast.literal_eval):
        try:
            parsed = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(parsed, list | dict):
            return parsed
        return value
    return value


def as_object(value: Any) -> Any:
    """Return the list or dict of a cell or of the text in it, with Python values; any other value as it is."""
    value = parse_text(as_python(value))
    if isinstance(value, Mapping):
        return {key: as_object(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_object(inner) for inner in value]
    return value


def _printed_array(text: str) -> list[str]:
    if not _NUMPY_TEXTS.fullmatch(text):
        raise ValueError("no array of texts")
    items = []
    for item in re.findall(_TEXT, text):
        items.append(ast.literal_eval(item))
    return items


def lookup(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, or of a nested one; None if it is missing.

    A path such as "metadata.subject" leads into dicts, "answers.0" and "answers[0]" into lists, and both into JSON text
    of one.
    """
    if column in row:
        return row[column]
    head, _, rest = _INDEX.sub(r".\1", column).partition(".")
    if rest:
        return _inside(row.get(head), rest)
    return None


def _inside(value: Any, path: str) -> Any:
    value = parse_text(as_python(value))
    if isinstance(value, Mapping):
        return lookup(value, path)
    place, _, rest = path.partition(".")
    if not isinstance(value, list | tuple) or not place.isdigit() or int(place) >= len(value):
        return None
    item = value[int(place)]
    if rest:
        return _inside(item, rest)
    return item


def column_of(path: str) -> str:
    """Return the column in which a path begins."""
    return _INDEX.sub(r".\1", path).partition(".")[0]


def single(value: Any) -> Any:
    """Return the value of a cell, with Python values, as one; a list of one, also in JSON text, is what is in it."""
    value = as_object(value)
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return value
