"""Atomic file writes, and checks of records read from files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lit_rlvr.errors import UserError, first_line, shown

Fields = Mapping[str, type | tuple[type, ...]]
"""The type, or types, of each field of a record, by name."""


MEMORY_FILE = "memory.json"
"""File of the run folder with the smaller sizes of a run that ran out of memory, for its next start."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) atomically; create its folder; keep an older file until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # unlike any file of the user's
    try:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def save_smaller_sizes(run: Path, **sizes: float) -> None:
    """Write sizes with which the next start in this run folder begins, next to those that are saved already."""
    write_atomically(run / MEMORY_FILE, json.dumps(smaller_sizes(run) | sizes))


def smaller_sizes(run: Path) -> dict[str, float]:
    """Return the sizes that an earlier start of the run saved, by name.

    Raises:
        UserError: the file cannot be read.
    """
    path = run / MEMORY_FILE
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or not all(isinstance(size, int | float) for size in found.values()):
            raise ValueError("it holds something else than numbers by name")
    except ValueError as error:
        raise UserError(
            f"{shown(path)} is not what a run of lit-rlvr wrote ({first_line(error)}); delete it"
        ) from error
    return found


def check_writable(folder: Path, option: str) -> None:
    """Refuse a folder that cannot be written or created; leave nothing behind.

    Args:
        option: the option that the message names.

    Raises:
        UserError: writing or creating it fails.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-test"
        probe.write_text("x" * 4096)
        probe.unlink()
    except OSError as error:
        raise UserError(not_writable(folder, option, error)) from error
    finally:
        for path in missing:
            with suppress(OSError):  # it was never created
                path.rmdir()


def not_writable(folder: Path, option: str, error: OSError) -> str:
    """Return the message about a folder that cannot be written or created; it names `option`."""
    file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if file is not None:
        return f"{option}: {shown(file)} is a file; give a folder"
    return f"{option}: {shown(folder)} cannot be written: {error.strerror}"


def check_new(path: Path, option: str) -> None:
    """Refuse a file that exists, or whose folder cannot be written; the message names `option`."""
    if path.exists():
        raise UserError(f"{option}: {path} exists; choose another name, or remove it first")
    check_writable(path.parent, option)


def has_fields(record: Any, fields: Fields) -> bool:
    """Return True if a record read from JSON has these fields with these types."""
    return isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in fields.items())
