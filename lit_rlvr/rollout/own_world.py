"""vLLM beside a trainer of several processes: process groups of its own, and this rank's device.

vLLM takes a default process group that is there for its own: its groups would lie over the trainer's processes, which
would all have to start it together, and its end would destroy every group of the trainer's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d


class OwnWorld:
    """A default process group that torch.distributed has from time to time, in place of the trainer's.

    Groups are numbered apart from the trainer's, whose processes must go on counting theirs alike.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._count = 1 << 20  # numbers are names, and a name is used once

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Meanwhile the default group is this world's, or there is none; one that is made then is this world's."""
        world: Any = distributed_c10d._world
        group, count, hook = world.default_pg, world.group_count, sys.excepthook
        distributed_c10d._update_default_pg(self._group)
        world.group_count = self._count
        try:
            yield
        finally:
            self._group, self._count = world.default_pg, world.group_count
            distributed_c10d._update_default_pg(group)
            world.group_count, sys.excepthook = count, hook  # whose tracebacks name the trainer's rank

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Meanwhile there is no default group, whose end would be that of all there are; then this world's is gone."""
        group, self._group = self._group, None
        with self.inside():
            yield
        if group is not None:
            dist.destroy_process_group(group)


@cache
def vllm_world() -> OwnWorld:
    """The one that every vLLM of this process is started in, and that ends with it, however it ends."""
    from vllm.distributed import parallel_state

    world, destroy = OwnWorld(), parallel_state.destroy_distributed_environment

    def destroy_own() -> None:
        with world.ending():
            destroy()

    parallel_state.destroy_distributed_environment = destroy_own
    return world


def executor_on(index: int) -> type[Any]:
    """vLLM's executor for one process, on the device of this number.

    Left to itself it takes the first device that the process sees, which is the same one on every rank.
    """
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    class OnDevice(UniProcExecutor):
        def _distributed_args(self) -> tuple[str, int, int]:
            method, rank, _ = super()._distributed_args()
            return method, rank, index

    return OnDevice
