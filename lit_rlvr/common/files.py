"""Atomic file writes, checks of records read from files, and the folder of the cache."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

from lit_rlvr.common.log import log
from lit_rlvr.common.paths import expanded, shown
from lit_rlvr.common.user_code import user_line
from lit_rlvr.errors import UserError

Fields = Mapping[str, type | tuple[type, ...]]
"""The type, or types, of each field of a record, by name."""


MEMORY_FILE = "memory.json"
"""File of the run folder with the smaller sizes of a run that ran out of memory, for its next start."""


def available_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes of memory are free: the limits are the machine's and the container's (its `group`)."""
    amounts = []
    with suppress(OSError, ValueError):  # no such file, or no limit ("max")
        lines = Path("/proc/meminfo").read_text().splitlines()
        for line in lines:
            if line.startswith("MemAvailable:"):
                amounts.append(int(line.split()[1]) << 10)
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        amounts.append(limit - used + int(counts["inactive_file"]))  # the kernel drops this cache of files when it must
    return min(amounts, default=0)


def cache_folder() -> Path:
    """Return where converted models and generated databases are kept.

    This is $LIT_RLVR_CACHE, else $XDG_CACHE_HOME/lit-rlvr or ~/.cache/lit-rlvr. Where the default can be neither read
    nor written, it is a folder of this user's in the temporary folder.

    Raises:
        UserError: that is no folder of this user's.
    """
    given = os.environ.get("LIT_RLVR_CACHE")
    if given:
        return expanded(given)
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        default = expanded(parent) / "lit-rlvr"
        if not os.access(default, os.R_OK | os.X_OK):
            check_writable(default, "cache")
    except (UserError, RuntimeError) as error:  # RuntimeError: this user has no home
        return _temporary_cache(str(error).rstrip("."))
    return default


@cache
def _temporary_cache(reason: str) -> Path:
    """Return this user's cache in the temporary folder, which no other user can write; a warning says so once.

    Raises:
        UserError: another user has made it, or it is no folder.
    """
    folder = Path(tempfile.gettempdir()) / f"lit-rlvr-cache-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(f"{reason}, and {folder} is no folder of this user's; set LIT_RLVR_CACHE to one")
    log.warning("%s is the cache (%s); set LIT_RLVR_CACHE to choose another folder", folder, reason)
    return folder


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) atomically; create its folder; keep an older file until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # unlike any file of the user's
    try:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def save_smaller_sizes(run_folder: Path, **sizes: float) -> None:
    """Write sizes with which the next start in this run folder begins, next to those that are saved already."""
    write_atomically(run_folder / MEMORY_FILE, json.dumps(smaller_sizes(run_folder) | sizes))


def smaller_sizes(run_folder: Path) -> dict[str, float]:
    """Return the sizes that an earlier start of the run saved, by name."""
    path = run_folder / MEMORY_FILE
    if path.exists():
        return dict(json.loads(path.read_text()))
    return {}


def write_failure(error: BaseException) -> str | None:
    """Return why a file could not be written, such as "No space left on device"; None for any other error.

    The packages tokenizers and safetensors, in Rust, raise no `OSError`; their messages end in "(os error 28)".
    """
    rust = re.search(r"\(os error (\d+)\)", str(error))
    if isinstance(error, OSError):
        number = error.errno
    else:
        number = rust and int(rust[1])
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG):
        return os.strerror(number)
    return None


@contextmanager
def writing(what: str, hint: str = "") -> Iterator[None]:
    """Turn a failed write that does not know its file into one line; errors in the user's code stay as they are.

    Args:
        what: the file or folder that is written.
        hint: what the user can do.

    Raises:
        UserError: the disk is full, or cannot be written.
    """
    try:
        yield
    except Exception as error:
        reason = write_failure(error)
        if reason is None or getattr(error, "filename", None) or isinstance(error, UserError) or user_line(error):
            raise
        raise UserError(f"{what} cannot be written: {reason}{hint}") from error


@contextmanager
def reading(what: str, folder: str) -> Iterator[None]:
    """Turn whatever another package raises on the files of a model into one line.

    Args:
        what: the part of the model that is read.
        folder: the model's folder or hub id.

    Raises:
        UserError: it cannot be read.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = shorten(f"{type(error).__name__}: {error}", 300, placeholder="...")
        raise UserError(f"model: {what} of {folder} cannot be read: {reason}") from error


def scratch_folder(target: Path, what: str, hint: str = "") -> Path:
    """Create an empty folder next to `target`, which it is renamed to when it is complete.

    Args:
        target: the folder to make.
        what, hint: as for `writing`.

    Raises:
        UserError: it cannot be created.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror}{hint}") from error


def check_writable(folder: Path, option: str) -> None:
    """Refuse a folder that cannot be written or created; leave nothing behind.

    Args:
        folder: the folder.
        option: the option that the message names.

    Raises:
        UserError: writing or creating it fails.
    """
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # it may be hidden from us
    if not nearest.is_dir():
        raise UserError(f"{option}: {shown(nearest)} is a file; give a folder")
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"x" * 4096)
    except OSError as error:
        raise UserError(f"{option}: {shown(folder)} cannot be written: {error.strerror}") from error


def check_new(path: Path, option: str, *endings: str) -> None:
    """Refuse a file that exists, whose folder cannot be written, or with another ending; the message names `option`."""
    if endings and path.suffix not in endings:
        raise UserError(f"{option}: {path}: give a file that ends in {endings[0]}")
    if path.exists():
        raise UserError(f"{option}: {path} exists; choose another name, or remove it first")
    check_writable(path.parent, option)


def has_fields(record: Any, fields: Fields) -> bool:
    """Return True if a record read from JSON has these fields with these types."""
    return isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in fields.items())
