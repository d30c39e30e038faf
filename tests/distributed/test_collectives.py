"""Sums and gathers on a GPU-only backend: it never gets a tensor that NCCL would refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_rlvr.distributed import collectives
from lit_rlvr.distributed.collectives import all_max, all_sum, gather_rows


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The devices of tensors that the backend of two ranks receives; like NCCL, it refuses CPU tensors."""
    devices: list[str] = []

    def refuse(*tensors: Tensor) -> None:
        for tensor in tensors:
            devices.append(tensor.device.type)
            assert tensor.is_cuda, "No backend type associated with device type cpu"

    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(collectives.dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(collectives.dist, "all_reduce", lambda tensor, **_: refuse(tensor))
    monkeypatch.setattr(collectives.dist, "all_gather", lambda parts, tensor: refuse(tensor, *parts))
    with FakeTensorMode():  # GPU tensors without a GPU
        yield devices


@pytest.mark.parametrize("collective", [all_sum, gather_rows])
@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_tensors_go_to_the_backends_device_and_back(
    seen: list[str], collective: Callable[[Tensor], Tensor], device: str
) -> None:
    found = collective(torch.ones(3, 2, device=device))
    assert found.device == torch.device(device) and set(seen) == {"cuda"}


def test_a_number_goes_there_too(seen: list[str]) -> None:
    with pytest.raises(RuntimeError):  # a fake tensor has no value
        all_max(3, torch.device("cpu"))
    assert seen == ["cuda"]
