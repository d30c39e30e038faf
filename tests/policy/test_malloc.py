"""Freed memory is reused: fewer page faults, and no growth."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, resource
import lit_rlvr
from lit_rlvr.policy.speed import keep_freed_memory
import torch
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.manual_seed(0)
kept = []
for i in range(60):
    x = torch.ones(int(torch.randint(1 << 22, 1 << 24, ())))
    kept.append(torch.ones(100))
    if i == 20:
        before = resource.getrusage(resource.RUSAGE_SELF)
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_minflt - before.ru_minflt, after.ru_maxrss - before.ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_large_tensors_are_not_mapped_anew_and_memory_does_not_grow() -> None:
    found = {}
    for mode in ("kept", "plain"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        found[mode] = [int(number) for number in done.stdout.split()]
    faults, growth = found["kept"]
    assert faults < 0.2 * found["plain"][0], found
    assert growth < 256 << 10, "KiB over forty tensors of up to 64 MiB each"


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


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_returned_when_the_system_has_less() -> None:
    done = subprocess.run([sys.executable, "-c", SHORT], capture_output=True, text=True, check=True)
    full, enough, short = (int(number) for number in done.stdout.split())  # MiB
    assert enough == full and short < full - 200, (full, enough, short)
