"""Strategies for tests."""

from __future__ import annotations

from lit_rlvr.distributed.fsdp2 import FSDP2


class OffloadedHere(FSDP2):
    """Offloads shards from a CPU to the same CPU, which users are refused: torch's code for it runs without a GPU."""

    def __init__(self) -> None:
        super().__init__(process_group_backend="gloo")

    def setup_environment(self) -> None:
        super().setup_environment()
        self.offload = True
