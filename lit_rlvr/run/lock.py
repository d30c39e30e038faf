"""The lock that lets only one run use a run folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lit_rlvr.errors import UserError, shown

_log = logging.getLogger("lit_rlvr")


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold a run folder's lock file, and remove it afterwards; the kernel releases the lock of a killed process.

    The lock belongs to the process (`fcntl.lockf`), not to the open file: an engine or worker that outlives a killed
    run does not hold it.

    Raises:
        UserError: another process holds the lock (the message says which).
    """
    path = root / ".lock"
    while not (file := _lock(path)):  # the run that held it has just removed it
        pass
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path) -> TextIO | None:
    """Create and lock a file; None if it was removed meanwhile."""
    file = path.open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            with file:
                file.seek(0)
                raise UserError(
                    f"trainer.default_root_dir: another run is using {shown(path.parent)} ({file.read()}); wait until "
                    "it ends, or choose another folder"
                ) from error
        _log.warning("%s cannot be locked (%s): make sure that no other run uses this folder", path, error.strerror)
        return file
    if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
        file.close()
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
