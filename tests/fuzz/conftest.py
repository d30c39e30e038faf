"""Whatever a fuzz test does, it leaves nothing behind."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lit_rlvr.rewards import shared_pool


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Refuse processes and shared memory that were not there before."""

    def segments() -> dict[int, str]:
        """Return the names of the shared memory by inode: a semaphore is mapped under another name than it has."""
        found = {}
        for path in Path("/dev/shm").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                found[path.stat().st_ino] = path.name
        return found

    def mapped_elsewhere() -> set[int]:
        """Return the inodes that another living process maps, such as the tests of the other worker."""
        own, found = {os.getpid(), *(child.pid for child in children())}, set()
        for process in psutil.process_iter():
            if process.pid not in own:
                with contextlib.suppress(OSError):
                    lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
                    found |= {int(line.split()[4]) for line in lines if "/dev/shm/" in line}
        return found

    def children() -> set[psutil.Process]:
        found = psutil.Process().children(recursive=True)
        return {child for child in found if child.status() != psutil.STATUS_ZOMBIE}

    shared_pool().close()
    before, others = segments().keys(), children()
    yield
    shared_pool().close()
    left = [child for child in children() - others if "resource_tracker" not in " ".join(child.cmdline())]
    assert not left, [child.cmdline() for child in left]
    deadline = time.monotonic() + 10  # others map a segment a moment after they make it
    while True:
        now = segments()
        found = now.keys() - before - mapped_elsewhere()
        if not found or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert not found, [now[inode] for inode in found]
