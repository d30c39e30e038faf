"""FSDP2, Lightning's `ModelParallelStrategy` with the weights sharded over all ranks; any strategy's process groups."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lit_rlvr.common.files import available_memory
from lit_rlvr.common.log import log
from lit_rlvr.distributed.checkpoints import (
    MOMENTS,
    REST,
    WEIGHTS,
    ShardWriter,
    frozen_parts,
    is_sharded,
    load_shares,
    named,
    parts_in_shards,
    read_rest,
)
from lit_rlvr.distributed.collectives import DEFAULT_GROUP_LOCK, all_max
from lit_rlvr.distributed.sharding import find_shard, live_parts, local_bytes, storages, with_copies
from lit_rlvr.errors import UserError

BACKEND = "cpu:gloo,cuda:nccl"
"""Backends of a run on GPUs: what is in the CPU's memory, such as completions, does not pass through theirs."""
PROCESS_GROUP_TIMEOUT = timedelta(hours=6)
"""How long a process waits for the others, which may still be generating or validating."""
NCCL_TIMEOUT = timedelta(minutes=45)
"""How long it waits in an exchange of GPU tensors, gradients and weights, which all processes begin together.

A server may delay it by `VLLMServerEngine.timeout`, by default 30 minutes."""

LONG_WAIT_SECONDS = 5.0
"""Seconds after which a process prints that it waits for the save in flight."""


def prepare_groups(strategy: Strategy) -> None:
    """Set the backend of a strategy's process groups, unless the user has chosen it."""
    if isinstance(strategy, DDPStrategy | ModelParallelStrategy) and strategy.root_device.type == "cuda":
        strategy._process_group_backend = strategy._process_group_backend or BACKEND


def extend_timeouts(strategy: Any) -> None:
    """Let the processes wait longer for each other, once all are there, unless the user has chosen how long."""
    if getattr(strategy, "_timeout", None) != default_pg_timeout:
        return
    meshes = (getattr(strategy, name, None) for name in ("_device_mesh", "sharding_mesh"))
    groups = []
    for mesh in meshes:
        if mesh is not None:
            groups.extend(mesh.get_all_groups())
    set_timeouts([dist.group.WORLD, *groups])


def set_timeouts(groups: Sequence[Any]) -> None:
    """Set how long the backends of process groups wait, each of which has a timeout of its own.

    NCCL's is shorter, unless it has to exchange CPU tensors as well: a process that has ended leaves the others in it.

    Args:
        groups: the default group, which exchanges everything but shards, and others.
    """
    backends = []
    for group in groups:
        devices = []
        for device in group._device_types:
            if device.type in ("cpu", "cuda"):
                devices.append(device)
        backends.append({group._get_backend(device) for device in devices})
    is_nccl_alone = all(backend.name() == "nccl" for backend in backends[0])
    for backend in set().union(*backends):
        if backend.name() == "nccl" and not is_nccl_alone:
            backend._set_default_timeout(NCCL_TIMEOUT)
        else:
            backend._set_default_timeout(PROCESS_GROUP_TIMEOUT)


class FSDP2(ModelParallelStrategy):
    """Shards the weights, gradients and optimizer state over all processes; see `sharding.py`.

    A checkpoint is a folder to which each process writes its shards, in the background and from a copy in the CPU's
    memory while training goes on. It can be resumed on any number of processes and with any strategy, and this strategy
    can resume checkpoints of the others.

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
        self.replicas = replicas
        self.offload = offload
        self.sharding_mesh: DeviceMesh | None = None
        self.saving: Future[None] | None = None  # the save in flight: there is at most one
        self._save_group: Any = None
        self._saves_in_background = True

    def setup_environment(self) -> None:
        if self.offload and self.root_device.type == "cpu":
            raise UserError(
                "trainer.strategy.offload: the weights are on the CPU already; leave it off, or set "
                "trainer.accelerator to gpu"
            )
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
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
        # The collectives of a save in flight must not mix with those of the training that goes on.
        self._save_group = dist.new_group(backend="gloo", timeout=PROCESS_GROUP_TIMEOUT)

    def model_to_device(self) -> None:
        """Move what is not sharded; `shard` has placed the policy, and offloaded shards have to stay on the CPU."""
        module: Any = self.lightning_module
        policy, module.policy = module.policy, None
        module.to(self.root_device)
        module.policy = policy

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Callable[[], None] | None = None
    ) -> None:
        """Write a checkpoint's folder.

        Collective; call it on every rank, and only after `finish_saving`.

        Args:
            checkpoint: its contents.
            filepath: the folder.
            storage_options: what rank 0 does once all ranks have written their shards. If it is given and a copy of the
                shards fits into memory, this method returns as soon as there is a copy.

        Raises:
            UserError: a part other than the weights, the optimizer, the reference and the teachers holds shards.
        """
        assert self.saving is None, "one save in flight"
        path = Path(self.broadcast(filepath))
        moments = []
        for state in checkpoint["optimizer_states"]:
            moments.append(state.pop("state"))
        tensors = {WEIGHTS: checkpoint.pop("state_dict"), MOMENTS: moments[0]}
        for part, state in frozen_parts(checkpoint["rlvr"]["reference"], checkpoint["rlvr"]["teachers"]).items():
            if state["weights"] is not None:
                tensors[part] = state["weights"]
                state["weights"] = None
        shard = find_shard(checkpoint)
        if shard is not None:
            raise UserError(
                f"checkpoint: {shard} is a shard of a tensor, and of this part only the first process's is saved; have "
                "its state_dict return the `full_tensor()`, which every process has to ask for, or no tensor at all"
            )
        path.mkdir(parents=True, exist_ok=True)
        if self.is_global_zero:
            torch.save(checkpoint, path / REST)
        live = live_parts(tensors, self._live_storages())  # Lightning has copied what was on a GPU
        if storage_options is None or not self._has_memory_for_copy(live):
            self._write(tensors, ShardWriter(path), storage_options)
            return
        stager = DefaultStager(StagingOptions(False, False, False, False))  # an exact copy, made now
        copies: Any = stager.stage(live)
        copy = with_copies(tensors, copies)
        stager.close()
        writer = ShardWriter(path, per_thread_copy_ahead=0)  # else each rank would use the first GPU
        saving: Future[None] = Future()
        self.saving = saving

        def write() -> None:
            try:
                self._write(copy, writer, storage_options)
            except BaseException as error:
                saving.set_exception(error)
            else:
                saving.set_result(None)

        # A daemon: whoever leaves without `finish_saving`, such as a second Ctrl-C, does not wait for it.
        threading.Thread(target=write, name="lit-rlvr-checkpoint", daemon=True).start()

    def _live_storages(self) -> set[int]:
        """Return the memory of the weights, the optimizer's state, the reference and the teachers on this rank."""
        module: Any = self.lightning_module
        tensors = [*module.parameters()]
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                tensors += state.values()
        for policy in (module.reference.policy, *module.teachers.policies):
            if policy is not None:
                tensors += policy.parameters()
        return storages(tensors)

    def _has_memory_for_copy(self, tensors: dict[str, Any]) -> bool:
        """Return whether every machine has memory for a copy of its ranks' shards; print once if not.

        Collective: call it on every rank.
        """
        needed = local_bytes(tensors) * self.num_processes
        fits = not all_max(int(needed > 0.9 * available_memory()), torch.device("cpu"))
        if not fits and self._saves_in_background and self.is_global_zero:
            log.warning(
                "a copy of the shards, %.1f GB on this machine, does not fit into the free memory of every machine; "
                "training waits while checkpoints are written",
                needed / 1e9,
            )
        self._saves_in_background = fits
        return fits

    def _write(self, tensors: Any, writer: ShardWriter, written: Callable[[], None] | None) -> None:
        """Write this rank's shards; then rank 0 calls `written`, or raises what went wrong on any rank."""
        try:
            with DEFAULT_GROUP_LOCK:
                dcp.save(tensors, storage_writer=writer, process_group=self._save_group)
        except dcp.CheckpointException as error:  # all ranks get it
            if self.is_global_zero:
                raise next(iter(error.failures.values()))[0] from error  # the cause, such as a full disk
        if written is not None and self.is_global_zero:
            written()

    @property
    def is_saving(self) -> bool:
        """Whether this rank is writing a checkpoint."""
        return self.saving is not None and not self.saving.done()

    def finish_saving(self) -> None:
        """Wait for this rank's part of the save in flight, if there is one, and raise the exception that ended it.

        What fails on any rank while shards are written is raised on rank 0. The other ranks then wait for rank 0 and
        fail when it has ended.
        """
        if self.saving is None:
            return
        saving, self.saving = self.saving, None
        if wait([saving], timeout=LONG_WAIT_SECONDS).not_done:
            if self.is_global_zero:
                log.info("waiting until the checkpoint in flight is written")
            wait([saving])
        saving.result()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        module: Any = self.lightning_module
        checkpoint = read_rest(path)
        module.check_checkpoint(checkpoint)  # before shapes could clash
        if is_sharded(path):
            load = self._load_shares
        else:
            load = self._load_whole
        load(path, checkpoint, module)
        return checkpoint

    def _load_shares(self, path: Path, checkpoint: dict[str, Any], module: Any) -> None:
        """Load this rank's shards from a sharded checkpoint, written by any number of ranks."""
        weights = get_model_state_dict(module)
        if not module.strict_loading:  # only adapters were saved
            weights = {name: weights[name] for name in module.saved}
        load_shares({WEIGHTS: weights}, path)
        set_model_state_dict(module, weights, options=StateDictOptions(strict=module.strict_loading))
        for optimizer in self.optimizers:
            moments = get_optimizer_state_dict(module, optimizer)["state"]
            load_shares({MOMENTS: moments}, path)
            state = checkpoint["optimizer_states"][0] | {"state": moments}
            set_optimizer_state_dict(module, optimizer, state)
        parts = frozen_parts(module.reference, module.teachers.averaged)
        for part, state in parts_in_shards(checkpoint).items():
            if part in parts and parts[part].policy is not None:
                state["weights"] = get_model_state_dict(parts[part].policy)
                load_shares({part: state["weights"]}, path)

    def _load_whole(self, path: Path, checkpoint: dict[str, Any], module: Any) -> None:
        """Load this rank's shards from the full tensors in a file."""
        options = StateDictOptions(full_state_dict=True, strict=module.strict_loading)
        set_model_state_dict(module, checkpoint["state_dict"], options=options)
        for optimizer in self.optimizers:
            state = named(checkpoint["optimizer_states"][0], module.trained)
            set_optimizer_state_dict(module, optimizer, state, options=options)
