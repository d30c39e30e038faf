"""The GPUs that a plan is for: how many, and the memory of each."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from lightning.pytorch.accelerators import CUDAAccelerator

from lit_rlvr.errors import UserError

GIB = 2**30


MEMORY = {"A100-40": 40, "A100": 80, "A800": 80, "H100": 80, "H200": 141}
"""Name of a kind of GPU -> the memory of each, in GiB."""


@dataclass(frozen=True)
class GPUs:
    """The number of GPUs and the memory of each, in GiB."""

    count: int
    gib: float

    @classmethod
    def parse(cls, text: str) -> GPUs:
        """Parse `8x80GB`, or `8xH100`.

        Raises:
            UserError: the text does not have this form.
        """
        count, _, kind = text.partition("x")
        gib = MEMORY.get(kind, 0.0)
        if re.fullmatch(r"\d+(\.\d+)?GB", kind):
            gib = float(kind.removesuffix("GB"))
        if not re.fullmatch(r"[1-9]\d*", count) or not gib:
            raise UserError(
                f"--gpus: {text!r} is not a number of GPUs and the memory of each, such as 8x80GB, or their name: "
                f"8xH100; known are {', '.join(MEMORY)}"
            )
        return cls(int(count), gib)

    @classmethod
    def of_trainer(cls, accelerator: str, devices: list[int] | str | int, num_nodes: int) -> GPUs | None:
        """Return the GPUs that a Trainer with these options uses; None = it runs on the CPU.

        Of several kinds of GPU in this machine, the one with the least memory counts for all.
        """
        if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
            return None
        count = CUDAAccelerator.auto_device_count() if devices in ("auto", -1, "-1") else devices
        used = CUDAAccelerator.parse_devices(count) or []
        gib = min((torch.cuda.get_device_properties(gpu).total_memory / GIB for gpu in used), default=0.0)
        if used:
            return cls(len(used) * num_nodes, gib)
        return None
