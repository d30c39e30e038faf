"""Keeps vLLM's process groups apart from those of a multi-process trainer, and vLLM on this rank's device.

By default vLLM adopts an existing default process group as its own. Its groups would then span the trainer's processes,
which would all have to start it together, and shutting it down would destroy all of the trainer's groups.
"""

from __future__ import annotations

import os
import socket
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from lit_rlvr.common.paths import expanded
from lit_rlvr.distributed.collectives import DEFAULT_GROUP_LOCK


class VLLMProcessGroup:
    """A default process group that temporarily replaces the trainer's in torch.distributed.

    Its groups are numbered separately, because the trainer's processes must keep counting theirs identically.

    Args:
        first: number of its first group; a group's number becomes its name, which must be unique.
    """

    def __init__(self, first: int = 1 << 20) -> None:
        self._group: Any = None
        self._count = first

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Make this world's group the default one inside this context, and keep a default group that is made there.

        Wait until a checkpoint in flight is written, whose collectives need the trainer's group.
        """
        with DEFAULT_GROUP_LOCK:
            world: Any = distributed_c10d._world
            group = world.default_pg
            count = world.group_count
            hook = sys.excepthook
            distributed_c10d._update_default_pg(self._group)
            world.group_count = self._count
            try:
                yield
            finally:
                self._group = world.default_pg
                self._count = world.group_count
                distributed_c10d._update_default_pg(group)
                # the trainer's hook, which names its rank
                world.group_count = count
                sys.excepthook = hook

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Destroy this world's group after this context.

        Inside the context there is no default group, because destroying the default one destroys the trainer's groups
        too.
        """
        group = self._group
        self._group = None
        with self.inside():
            yield
        if group is not None:
            dist.destroy_process_group(group)


@cache
def vllm_world() -> VLLMProcessGroup:
    """Return the process group that every vLLM of this process starts in, and which ends when vLLM shuts down."""
    from vllm.distributed import parallel_state

    world = VLLMProcessGroup()
    destroy = parallel_state.destroy_distributed_environment

    def destroy_own() -> None:
        with world.ending():
            destroy()

    parallel_state.destroy_distributed_environment = destroy_own
    return world


def executor_on(index: int) -> type[Any]:
    """Return vLLM's single-process executor, on the device with this index.

    By default it takes the first visible device, which is the same one on every rank.
    """
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    class OnDevice(UniProcExecutor):
        def _distributed_args(self) -> tuple[str, int, int]:
            method, rank, _ = super()._distributed_args()
            return method, rank, index

    return OnDevice


def separate_cache(index: int) -> None:
    """Give vLLM on this machine's device with this index a cache of its own.

    Compiled kernels name the device that they run on, and the executor above makes every rank vLLM's rank 0, so that
    ranks would load each other's.
    """
    default = expanded(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "vllm"
    root = Path(os.environ.get("VLLM_CACHE_ROOT", default))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    name = f"{socket.gethostname()}-{zlib.crc32(visible.encode()):08x}-{index}"
    if root.name != name:  # an engine that starts again has set it
        os.environ["VLLM_CACHE_ROOT"] = str(root / name)
