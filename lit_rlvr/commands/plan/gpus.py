"""The GPUs that a plan is for: how many, the memory of each, and the rates of their data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from lightning.pytorch.accelerators import CUDAAccelerator

from lit_rlvr.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class DataSheet:
    """A kind of GPU.

    Args:
        gib: its memory, as it is sold.
        tflops: 10^12 operations per second of dense matrix products in bfloat16.
        bandwidth: 10^12 bytes per second that it reads from its memory.
    """

    gib: float
    tflops: float
    bandwidth: float


DATA_SHEETS = {
    "A100-40": DataSheet(40, 312, 1.555),
    "A100": DataSheet(80, 312, 2.039),
    "A800": DataSheet(80, 312, 2.039),
    "H100": DataSheet(80, 989, 3.35),
    "H200": DataSheet(141, 989, 4.8),
}
"""Name -> the SXM version's data sheet by NVIDIA."""


@dataclass(frozen=True)
class GPUs:
    """The number of GPUs and the memory of each, in GiB.

    Args:
        kind: a name in `DATA_SHEETS`; None = only their memory is known.
    """

    count: int
    gib: float
    kind: str | None = None

    @classmethod
    def parse(cls, text: str) -> GPUs:
        """Parse `8x80GB`, or `8xH100`.

        Raises:
            UserError: the text does not have this form.
        """
        if (named := re.fullmatch(r"([1-9]\d*)x(.+)", text)) and named[2] in DATA_SHEETS:
            return cls(int(named[1]), DATA_SHEETS[named[2]].gib, named[2])
        found = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)GB", text)
        if not found or not int(found[1]) or not float(found[2]):
            raise UserError(
                f"--gpus: {text!r} is not a number of GPUs and the memory of each, such as 8x80GB, or their name: "
                f"8xH100; known are {', '.join(DATA_SHEETS)}"
            )
        return cls(int(found[1]), float(found[2]))

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
        return cls(len(used) * num_nodes, gib) if used else None
