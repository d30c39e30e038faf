"""Paths in messages, and what stands at them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from lit_rlvr.errors import UserError


def shown(path: str | Path) -> str:
    """Return a path for a message: relative to the current directory if it is below it."""
    try:
        below = Path(path).is_relative_to(Path.cwd())
    except FileNotFoundError:  # the current directory was removed
        below = False
    if below:
        return os.path.relpath(path)
    return str(path)


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder in the place of `~`.

    Raises:
        UserError: there is no such home folder.
    """
    whole = Path(os.path.expanduser(path))
    first = whole.parts[0] if whole.parts else ""
    if first.startswith("~") and not os.path.lexists(first):
        raise UserError(f"{path}: there is no home folder {first}; write the folder's whole path")
    return whole


def why_not_a_file(path: Path) -> str | None:
    """Return what stands at a path instead of a file that can be read, such as "is a folder"; None for a file, and for
    nothing at all."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link that leads back to itself"
        if path.is_symlink():
            return f"is a link to {os.readlink(path)}, which is not there"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        return f"cannot be read: {error.strerror}"
    if stat.S_ISDIR(mode):
        return "is a folder"
    if stat.S_ISREG(mode):
        return None
    return "is a pipe or a device, not a file; write its content to a file"
