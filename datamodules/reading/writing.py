"""Converts samples back to rows of a file."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from PIL import Image

from lit_rlvr.types import Sample


def as_row(sample: Sample, from_file: bool) -> dict[str, Any]:
    """A sample as a row of JSON.

    Args:
        from_file: the sample was read from a file. It becomes that file's row again, for the same DataModule and
            options, with images as base64 text. Any other sample gets the columns prompt, answer, image, id, category
            and options, which every DataModule reads with `columns`.
    """
    row = {str(name): _plain(cell) for name, cell in sample.row.items()}
    if from_file and row:
        return row
    fields = {
        "id": sample.id,
        "prompt": sample.prompt,
        "answer": sample.answer,
        "image": [_plain(image) for image in sample.images],
        "category": sample.category,
        "options": sample.options,
    }
    return row | {name: cell for name, cell in fields.items() if cell}


def _plain(cell: Any) -> Any:
    """A cell as a JSON value."""
    if isinstance(cell, Image.Image):
        file = BytesIO()
        cell.save(file, format="PNG")
        cell = file.getvalue()
    if isinstance(cell, bytes):
        return base64.b64encode(cell).decode()
    if isinstance(cell, Mapping):
        return {str(name): _plain(value) for name, value in cell.items()}
    if isinstance(cell, list | tuple):
        return [_plain(value) for value in cell]
    return cell if cell is None or isinstance(cell, bool | int | float | str) else str(cell)
