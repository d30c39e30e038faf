"""Checks the return values of a user's `rows` and `sample`, so that the error message can name the function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lit_rlvr.datamodules.reading.rows import BadRow
from lit_rlvr.errors import UserError, defined_at, kind_of
from lit_rlvr.types import Sample

FIELD_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "id": (str, "text"),
    "prompt": ((str, list), "text, or a list of messages"),
    "answer": (str, "text"),
    "images": (Sequence, "a list of images"),
    "row": (Mapping, "a dict"),
    "category": (str, "text"),
    "source": (str, "text"),
    "options": (tuple, "a tuple of texts"),
}
"""Field of a `Sample` -> its type, and that type's name in messages."""


def check_made(found: Any, function: Callable[..., Any], item: str) -> Sample | BadRow:
    """Check that a function returned a valid sample.

    Args:
        item: which item this is, for the message.

    Raises:
        UserError: it is not a sample, or a field has the wrong type; names the function, its file and line.
    """
    if isinstance(found, BadRow):
        return found
    where = f"{defined_at(function)}: {item}"
    if not isinstance(found, Sample):
        raise UserError(f"{where} must be a Sample(id=..., prompt=..., answer=...), not {kind_of(found)}")
    for field, (wanted, name) in FIELD_TYPES.items():
        value = getattr(found, field)
        if not isinstance(value, wanted) or (field == "images" and isinstance(value, str | bytes)):
            raise UserError(f"{where}: {field} must be {name}, not {kind_of(value)}")
    return found


def made_rows(found: Any, function: Callable[..., Any]) -> Iterator[Sample | BadRow]:
    """The samples that `rows` returned, each checked; none if it returned None.

    Raises:
        UserError: the result is not iterable, or an item fails `check_made`.
    """
    if found is None:
        return
    if not isinstance(found, Iterable):
        raise UserError(f"{defined_at(function)} must give Samples, not {kind_of(found)}")
    for number, item in enumerate(found, 1):
        yield check_made(item, function, f"item {number}")
