"""Freed memory is reused: fewer page faults, and no growth."""

import subprocess
import sys

import pytest
import torch

from lit_rlvr.policy.speed import keep_freed_memory

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
    for way in ("kept", "plain"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True)
        found[way] = [int(number) for number in done.stdout.split()]
    faults, growth = found["kept"]
    assert faults < 0.2 * found["plain"][0], found
    assert growth < 256 << 10, "KiB over forty tensors of up to 64 MiB each"


def test_with_a_gpu_freed_memory_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """It held the copy of the weights on its way to the GPU, which each of a machine's ranks would keep."""
    monkeypatch.setattr("lit_rlvr.policy.speed.ctypes.CDLL", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    keep_freed_memory()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if sys.platform.startswith("linux"):
        with pytest.raises(TypeError):
            keep_freed_memory()
