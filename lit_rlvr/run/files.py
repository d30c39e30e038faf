"""Files that are either whole or not there, and records that have the form they should."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Fields = Mapping[str, type | tuple[type, ...]]
"""Name -> type (or types) of each field of a record."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8), its folder too; until it is complete, an older one stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(scratch, path)


def has_fields(record: Any, fields: Fields) -> bool:
    """Whether a record read from JSON has these fields, each of its type."""
    return isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in fields.items())
