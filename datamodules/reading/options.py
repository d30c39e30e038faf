"""Checks of option values, each failing with a one-line error."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from lit_rlvr.errors import UserError

FIELDS = ("prompt", "answer", "image", "id", "category", "options")
"""The fields that `columns` can map by default."""


def at_least_one(**options: int | None) -> None:
    """Refuse counts below 1; None is "not given"."""
    for option, number in options.items():
        if number is not None and number < 1:
            raise UserError(f"{option} must be at least 1, got {number}")


def check_pixels(min_pixels: int | None, max_pixels: int | None) -> None:
    """Refuse bounds below 1 and a minimum above the maximum."""
    at_least_one(min_pixels=min_pixels, max_pixels=max_pixels)
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise UserError(f"min_pixels={min_pixels} is more than max_pixels={max_pixels}")


def check_share(option: str, share: float) -> None:
    """Refuse a share outside [0, 1]."""
    if not 0 <= share <= 1:
        raise UserError(f"{option} is a share between 0 and 1, got {share}")


def check_columns(columns: Mapping[str, str], fields: Sequence[str]) -> None:
    """Refuse a `columns` mapping with an unknown field."""
    for field in columns:
        if field not in fields:
            nearest = get_close_matches(field, fields, 1)
            hint = f", did you mean {nearest[0]!r}?" if nearest else f"; known fields: {', '.join(fields)}"
            raise UserError(f"columns: unknown field {field!r}{hint}")


def snake_case(class_name: str) -> str:
    """TextToSQL -> text_to_sql, GSM8K -> gsm8k."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()
