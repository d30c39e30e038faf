"""Whatever a fuzz test does, it leaves nothing behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import psutil
import pytest

from lit_rlvr.rewards import shared_pool


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process and no shared memory that was not there before."""

    def segments() -> set[str]:
        return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()

    def children() -> set[psutil.Process]:
        found = psutil.Process().children(recursive=True)
        return {child for child in found if child.status() != psutil.STATUS_ZOMBIE}

    shared_pool().close()
    before, others = segments(), children()
    yield
    shared_pool().close()
    left = [child for child in children() - others if "resource_tracker" not in " ".join(child.cmdline())]
    assert not left, [child.cmdline() for child in left]
    deadline = time.monotonic() + 10  # other programs of this machine make and remove segments, too
    while not (found := segments()) <= before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found <= before
