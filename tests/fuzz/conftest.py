"""Whatever a fuzz test does, it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import psutil
import pytest

from lit_rlvr.rewards import shared_pool


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Refuse processes and shared memory that were not there before."""

    def segments() -> set[str]:
        return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()

    def mapped_elsewhere() -> set[str]:
        """Return the shared memory that another living process maps, such as the tests of the other worker."""
        own, found = {os.getpid(), *(child.pid for child in children())}, set()
        for process in psutil.process_iter():
            if process.pid not in own:
                with contextlib.suppress(psutil.Error):
                    found |= {os.path.basename(area.path) for area in process.memory_maps()}
        return found

    def children() -> set[psutil.Process]:
        found = psutil.Process().children(recursive=True)
        return {child for child in found if child.status() != psutil.STATUS_ZOMBIE}

    shared_pool().close()
    before, others = segments(), children()
    yield
    shared_pool().close()
    left = [child for child in children() - others if "resource_tracker" not in " ".join(child.cmdline())]
    assert not left, [child.cmdline() for child in left]
    deadline = time.monotonic() + 10  # others map a segment a moment after they make it
    while (found := segments() - before) and (found := found - mapped_elsewhere()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not found
