"""FSDP2, Lightning's `ModelParallelStrategy` with the weights sharded over all ranks; any strategy's process groups."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from lit_rlvr.distributed.checkpoints import (
    MOMENTS,
    REFERENCE,
    REST,
    WEIGHTS,
    is_sharded,
    lacks_reference,
    load_shares,
    named,
    read_rest,
)
from lit_rlvr.errors import UserError

BACKEND = "cpu:gloo,cuda:nccl"
"""Backends of a run on GPUs: what is in the CPU's memory, such as completions, does not pass through theirs."""
PROCESS_GROUP_TIMEOUT = timedelta(hours=6)
"""How long a process waits for the others, which may still be generating; `RankWatch` notices those that have died."""


def prepare_groups(strategy: Strategy) -> None:
    """Set the backend of a strategy's process groups, unless the user has chosen it."""
    if isinstance(strategy, DDPStrategy | ModelParallelStrategy) and strategy.root_device.type == "cuda":
        strategy._process_group_backend = strategy._process_group_backend or BACKEND


def extend_timeouts(strategy: Any) -> None:
    """Let the processes wait longer for each other, once all are there, unless the user has chosen how long."""
    if getattr(strategy, "_timeout", None) != default_pg_timeout:
        return
    meshes = (getattr(strategy, name, None) for name in ("_device_mesh", "sharding_mesh"))
    groups = [group for mesh in meshes if mesh is not None for group in mesh.get_all_groups()]
    for group in (dist.group.WORLD, *groups):  # torch gives each kind its own timeout
        _set_pg_timeout(PROCESS_GROUP_TIMEOUT, group)


class FSDP2(ModelParallelStrategy):
    """Shards the weights, gradients and optimizer state over all processes; see `sharding.py`.

    A checkpoint is a folder to which each process writes its shards. It can be resumed on any number of processes and
    with any strategy, and this strategy can resume checkpoints of the others.

    Args:
        process_group_backend: by default `gloo` for tensors on CPUs and `nccl` for those on GPUs.
        replicas: copies of the model, each sharded over an equal part of the processes ("HSDP"). With one copy per
            machine, layers are gathered within machines, and only gradients are averaged between them.
        offload: keep the shards of weights, gradients and optimizer state in the CPU's memory, copy each layer's to
            the GPU while it runs, and take the optimizer's steps on the CPU: slower, with a fraction of the GPU's
            memory, also on a single GPU.
    """

    def __init__(self, process_group_backend: str | None = None, replicas: int = 1, offload: bool = False) -> None:
        super().__init__(process_group_backend=process_group_backend)
        self.replicas, self.offload = replicas, offload
        self.sharding_mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        if self.offload and self.root_device.type == "cpu":
            raise UserError(
                "trainer.strategy.offload: the weights are on the CPU already; leave it off, or set "
                "trainer.accelerator to gpu"
            )
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        processes = self._data_parallel_size
        if self.replicas < 1 or processes % self.replicas:
            raise UserError(
                f"trainer.strategy.replicas: {processes} processes cannot be split evenly over {self.replicas} copies "
                "of the model; use a divisor"
            )
        super().setup_environment()
        assert self.device_mesh is not None
        self.sharding_mesh = self.device_mesh["data_parallel"]
        if self.replicas > 1:
            size = (self.replicas, processes // self.replicas)
            names = ("replicas", "shards")
            self.sharding_mesh = init_device_mesh(self.device_mesh.device_type, size, mesh_dim_names=names)

    def model_to_device(self) -> None:
        """Move what is not sharded; `shard` has placed the policy, and offloaded shards have to stay on the CPU."""
        module: Any = self.lightning_module
        policy, module.policy = module.policy, None
        module.to(self.root_device)
        module.policy = policy

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        moments = [state.pop("state") for state in checkpoint["optimizer_states"]]
        tensors = {WEIGHTS: checkpoint.pop("state_dict"), MOMENTS: moments[0]}
        reference = checkpoint["rlvr"]["reference"]
        if reference["weights"] is not None:
            tensors[REFERENCE], reference["weights"] = reference["weights"], None
        path.mkdir(parents=True, exist_ok=True)
        try:
            dcp.save(tensors, checkpoint_id=path)
        except dcp.CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from error  # the cause on one rank, such as a full disk
        if self.is_global_zero:
            torch.save(checkpoint, path / REST)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        module: Any = self.lightning_module
        checkpoint = read_rest(path)
        module.check_checkpoint(checkpoint)  # before shapes could clash
        load = self._load_shares if is_sharded(path) else self._load_whole
        load(path, checkpoint, module)
        return checkpoint

    def _load_shares(self, path: Path, checkpoint: dict[str, Any], module: Any) -> None:
        """Load this rank's shards from a sharded checkpoint, written by any number of ranks."""
        weights = get_model_state_dict(module)
        if not module.strict_loading:  # only the trained weights were saved
            weights = {name: weights[name] for name in module.trained}
        load_shares({WEIGHTS: weights}, path)
        set_model_state_dict(module, weights, options=StateDictOptions(strict=module.strict_loading))
        for optimizer in self.optimizers:
            moments = get_optimizer_state_dict(module, optimizer)["state"]
            load_shares({MOMENTS: moments}, path)
            state = checkpoint["optimizer_states"][0] | {"state": moments}
            set_optimizer_state_dict(module, optimizer, state)
        if lacks_reference(checkpoint):
            reference = get_model_state_dict(module.reference.policy)
            load_shares({REFERENCE: reference}, path)
            checkpoint["rlvr"]["reference"]["weights"] = reference

    def _load_whole(self, path: Path, checkpoint: dict[str, Any], module: Any) -> None:
        """Load this rank's shards from the full tensors in a file."""
        options = StateDictOptions(full_state_dict=True, strict=module.strict_loading)
        set_model_state_dict(module, checkpoint["state_dict"], options=options)
        for optimizer in self.optimizers:
            state = named(checkpoint["optimizer_states"][0], module.trained)
            set_optimizer_state_dict(module, optimizer, state, options=options)
