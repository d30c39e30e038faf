"""Freed memory is reused: large tensors come from the heap, which stays as it is and does not grow."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
import torch

class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_int) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo.restype = Mallinfo
if sys.argv[1] == "kept":
    from lit_rlvr.policy.speed import keep_freed_memory
    keep_freed_memory()
torch.manual_seed(0)
kept, mapped, heap = [], 0, []
for i in range(60):
    blocks = libc.mallinfo().hblks
    x = torch.ones(int(torch.randint(1 << 22, 1 << 24, ())))
    mapped += libc.mallinfo().hblks > blocks
    kept.append(torch.ones(100))
    del x
    heap.append(libc.mallinfo().arena >> 20)
print(mapped, heap[-1] - heap[20], min(after - before for before, after in zip(heap, heap[1:])))
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_large_tensors_are_not_mapped_anew_and_memory_does_not_grow() -> None:
    found = {}
    for mode in ("kept", "plain"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        found[mode] = [int(number) for number in done.stdout.split()]
    mapped, growth, returned = found["kept"]
    assert (mapped, returned, found["plain"][0] > 40) == (0, 0, True), found
    assert growth < 256, "MiB over forty tensors of up to 64 MiB each"


SHORT = """
import lit_rlvr
import torch
from pathlib import Path
from lit_rlvr.policy import speed

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) >> 8

speed.keep_freed_memory()
blocks = [torch.ones(1 << 22) for _ in range(16)]
last = torch.ones(1 << 22)
del blocks
full = held()
speed.return_freed_memory()
enough = held()
speed.available_memory = lambda: 0
speed.return_freed_memory()
print(full, enough, held())
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_returned_when_the_system_has_less() -> None:
    done = subprocess.run([sys.executable, "-c", SHORT], capture_output=True, text=True, check=True)
    full, enough, short = (int(number) for number in done.stdout.split())  # MiB
    assert enough == full and short < full - 200, (full, enough, short)
