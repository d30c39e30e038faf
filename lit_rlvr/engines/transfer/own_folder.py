"""Folders for weights that other processes read, in memory or in the temporary folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from lit_rlvr.common.files import available_memory
from lit_rlvr.common.log import log

MEMORY = Path("/dev/shm")
"""Linux's file system in memory."""
VERSIONS = 3
"""Versions of the weights that must fit: the first one, the last one, and one that is being written."""
OWN_PREFIX = "lit-rlvr-weights-"


class OwnFolder:
    """A folder of this process alone, locked while the process lives.

    Making one removes the folders of processes that have been killed: nobody holds their locks.

    Args:
        place: the folder to make it in.
    """

    def __init__(self, place: Path) -> None:
        remove_abandoned(place)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=OWN_PREFIX, dir=place))
            with suppress(BlockingIOError, FileNotFoundError):  # another process is removing it, because it has no lock
                self._lock = _lock(self.path)
                return

    @classmethod
    def with_room(cls, size: int) -> OwnFolder:
        """Make one in memory if weights of `size` bytes fit there, else in the temporary folder."""
        remove_abandoned(MEMORY)
        if free_memory() >= VERSIONS * size:
            with suppress(OSError):  # it cannot be written
                return cls(MEMORY)
        folder = cls(Path(tempfile.gettempdir()))
        log.warning(
            "weights go through %s, because %s has no room for %.1f GB", folder.path, MEMORY, VERSIONS * size / 1e9
        )
        return folder

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned(place: Path) -> None:
    """Remove the folders that killed processes have left in a place."""
    for old in place.glob(f"{OWN_PREFIX}*"):
        with suppress(OSError):  # it is in use, another user's, or gone
            lock = _lock(old)
            shutil.rmtree(old, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int:
    """Lock a folder and return its descriptor, which holds the lock until it is closed.

    Raises:
        OSError: another process holds it, the folder is gone, or it cannot be read.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder)
    except OSError:
        os.close(handle)
        raise
    return handle


def free_memory() -> int:
    """Return how many bytes of files fit into `MEMORY`: the limits are its own, the machine's and the container's."""
    try:
        return min(shutil.disk_usage(MEMORY).free, available_memory())
    except OSError:  # there is none
        return 0
