"""Copies to a GPU: from page-locked memory, without waiting; `training/made_up_device_cases.py` counts them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_rlvr.distributed.collectives import index_tensor, to_device

CPU, GPU, META = torch.device("cpu"), torch.device("cuda:0"), torch.device("meta")


class Copies(TorchDispatchMode):
    """Notes every copy from one device to another: (from, to, whether it does not wait)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.seen.append((args[0].device.type, found.device.type, bool((kwargs or {}).get("non_blocking"))))
        return found


def test_a_copy_to_a_gpu_is_from_page_locked_memory_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[list[int]] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: (pinned.append(list(self.shape)), self)[1])
    with FakeTensorMode(), Copies() as copies:  # GPU tensors without a GPU
        moved = to_device(torch.ones(3, 2), GPU)
        assert moved.device == GPU
        assert to_device(moved, GPU) is moved
        assert index_tensor([1, 2, 3], GPU).dtype == torch.long
    assert pinned == [[3, 2], [3]]
    assert copies.seen == [("cpu", "cuda", True)] * 2


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.ones(3)
    assert to_device(tensor, CPU) is tensor
