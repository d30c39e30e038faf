"""Copies tensors to the device that computes, without making a GPU wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`, or itself if it is there already.

    A copy to a GPU is only put into its queue, so that the GPU finishes earlier work meanwhile. That needs page-locked
    memory, which torch keeps until the copy is done; from other memory, this process would wait for it.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def index(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Numbers as a long tensor on `device`. To index with a list would make a GPU wait for it, too."""
    return to_device(torch.tensor(values, dtype=torch.long), device)
