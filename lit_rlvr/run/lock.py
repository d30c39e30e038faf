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

from lit_rlvr.errors import UserError

_log = logging.getLogger("lit_rlvr")


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold a run folder's lock; the kernel releases it when this process ends, even if it is killed.

    The lock belongs to the process (`fcntl.lockf`), not to the open file: an engine or worker that outlives a killed
    run does not hold it.

    Raises:
        UserError: another process holds the lock (the message says which).
    """
    path = root / ".lock"
    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise UserError(
                    f"trainer.default_root_dir: another run is using {root} ({file.read()}); wait until it ends, "
                    "or choose another folder"
                ) from error
            _log.warning("%s cannot be locked (%s): make sure that no other run uses this folder", path, error.strerror)
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield
