"""Weights sharded over all ranks: each keeps a shard of every parameter, and a layer is gathered while it runs.

Source: Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel"; here with
torch's `fully_shard` ("FSDP2").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_rlvr.distributed.collectives import rank

_GATHERED: WeakSet[nn.Module] = WeakSet()
"""Modules inside `gathered`, which stay whole whatever runs."""


def shard(
    root: nn.Module,
    mesh: DeviceMesh,
    also_called: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    offload: bool = False,
) -> None:
    """Shard a module's parameters over the ranks of a mesh, in place, with the values of the first rank.

    Each layer (of the language model and of a vision tower) is gathered only for its own forward and backward pass;
    parameters outside the layers, such as the embeddings, are gathered while `root` itself runs, and stay whole until
    the backward pass has ended, which begins with them. So call `root`, never a part of it, and call it once before
    doing anything else with it; a pass with gradients needs its backward pass.

    Args:
        root: complete on the first rank; on the others its tensors may be on the meta device.
        mesh: of one dimension, over which parameters are sharded, or of two: copies of the model, and their shards.
        also_called: methods of `root` that run the model too, besides `forward`.
        dtype: in which parameters are gathered and the model computes; shards stay in float32, and gradients are summed
            in float32.
        offload: keep shards and their gradients on the CPU. A layer's are copied to the device while it runs.
    """
    offloaded = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offload else OffloadPolicy()
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    layers = []
    for module in root.modules():
        if isinstance(module, GradientCheckpointingLayer):
            layers.append(module)
    for module in (*reversed(layers), root):
        _fill(module, torch.device(mesh.device_type))
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy, offload_policy=offloaded)
    root.register_forward_pre_hook(lambda module, _: _keep_for_backward(module))
    for name in also_called:
        register_fsdp_forward_method(root, name)
        setattr(root, name, _keeping_for_backward(root, getattr(root, name)))


def _keep_for_backward(root: nn.Module) -> None:
    """Let the parameters outside the layers stay whole after a forward pass if a backward pass follows."""
    if root not in _GATHERED:
        root.set_reshard_after_forward(not torch.is_grad_enabled(), recurse=False)  # type: ignore[operator]


def _keeping_for_backward(root: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that runs a model as `forward` does."""

    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        _keep_for_backward(root)
        return method(*args, **kwargs)

    return run


def _fill(module: nn.Module, device: torch.device) -> None:
    """Copy the first rank's tensors into a module, except those already sharded."""
    filled: dict[Tensor, Tensor] = {}  # keeps tied tensors tied
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for tensors in tables:
            for name, tensor in tensors.items():
                if tensor is None or isinstance(tensor, DTensor):
                    continue
                if tensor not in filled:
                    filled[tensor] = _from_first(tensor, device)
                tensors[name] = filled[tensor]


def _from_first(tensor: Tensor, device: torch.device) -> Tensor:
    if dist.get_rank() == 0:
        values = tensor.detach().to(device)
    else:
        values = torch.empty_like(tensor, device=device)
    dist.broadcast(values, src=0)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, tensor.requires_grad)
    return values


@contextmanager
def gathered(root: nn.Module) -> Iterator[None]:
    """Within this context every rank holds the full weights and may run parts of the module on its own.

    A module that is not sharded is left alone.

    Collective; enter it on every rank.
    """
    modules = []
    for module in root.modules():
        if isinstance(module, FSDPModule):
            modules.append(module)
    _GATHERED.update(modules)
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        _GATHERED.difference_update(modules)
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def whole_parameters(root: nn.Module) -> Iterator[nn.Parameter]:
    """Yield a module's parameters as autograd sees them in a backward pass: whole, where this rank holds shards.

    Collective if they are sharded; iterate on every rank.
    """
    modules = []
    for module in root.modules():
        if isinstance(module, FSDPModule):
            modules.append(module)
    if not modules:
        yield from root.parameters()
    for module in modules:
        module.unshard()  # its own parameters, without those of sharded modules in it
        for parameter in module.parameters():
            if not isinstance(parameter, DTensor):
                yield parameter
        module.reshard()


def reduce_over_copies(root: nn.Module, now: bool) -> None:
    """Say whether the next backward pass sums gradients over copies of the model (HSDP), or leaves that to a later one.

    Gradients are summed over the shards' ranks in each pass, so that no rank holds all of them.
    """
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_all_reduce(now, recurse=False)


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a module computes on, which is not where offloaded shards are."""
    parameter = next(module.parameters())
    if not isinstance(parameter, DTensor) or parameter.device_mesh.device_type == "cpu":
        return parameter.device
    kind = parameter.device_mesh.device_type
    return torch.device(kind, torch.get_device_module(kind).current_device())


_SHAPES_ALONE: ContextVar[bool] = ContextVar("shapes_alone", default=False)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Let `full_tensor` return tensors without values within this context; then it gathers nothing."""
    before = _SHAPES_ALONE.set(True)
    try:
        yield
    finally:
        _SHAPES_ALONE.reset(before)


def full_tensor(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the full tensor, on every rank and on the device that computes.

    Collective: call it on every rank.

    Args:
        tensor: sharded or not.
        dtype: what to round it to before it is gathered; None = leave it as it is.
    """
    if _SHAPES_ALONE.get():
        return torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device="meta")
    tensor = tensor if dtype is None else tensor.detach().to(dtype)
    if not isinstance(tensor, DTensor):
        return tensor
    shard: Any = tensor.to(tensor.device_mesh.device_type)  # offloaded shards are on the CPU
    return shard.full_tensor()


def whole_weights(module: nn.Module) -> dict[str, Any]:
    """Return a module's full state on the CPU: on the first rank only, {} on the others.

    Collective: call it on every rank.
    """
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def weights_to_save(module: nn.Module) -> dict[str, Any]:
    """Return this rank's shards of a module's weights; without shards, `whole_weights`.

    Collective: call it on every rank.
    """
    if has_shards(module.parameters()):
        return get_model_state_dict(module)
    return whole_weights(module)


def load_weights(module: nn.Module, weights: dict[str, Any]) -> None:
    """Load this rank's shards, or full weights that are given on every rank."""
    full = not has_shards(weights.values())
    set_model_state_dict(module, weights, options=StateDictOptions(full_state_dict=full))


def local_bytes(tensors: Any) -> int:
    """Return the bytes of this rank's shards of (nested) tensors."""
    if isinstance(tensors, dict):
        return sum(map(local_bytes, tensors.values()))
    if isinstance(tensors, Tensor):
        return own_shard(tensors).nbytes
    return 0


def own_shard(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, or the tensor itself if it has no shards."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return tensor


def storages(tensors: Iterable[Any]) -> set[int]:
    """Return the addresses of the memory of this rank's shards."""
    storages = set()
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            storages.add(own_shard(tensor).untyped_storage().data_ptr())
    return storages


def live_parts(tensors: dict[str, Any], live: set[int]) -> dict[str, Any]:
    """Return those of nested tensors that are on a GPU or in memory at the addresses `live`: training changes them."""
    parts: dict[str, Any] = {}
    for name, value in tensors.items():
        if isinstance(value, dict):
            part = live_parts(value, live)
            if part:
                parts[name] = part
        elif isinstance(value, Tensor) and (value.device.type != "cpu" or storages([value]) <= live):
            parts[name] = value
    return parts


def with_copies(tensors: dict[str, Any], copies: dict[str, Any]) -> dict[str, Any]:
    """Return nested tensors with `copies` of some in their place."""
    replaced = {}
    for name, value in tensors.items():
        if isinstance(value, dict):
            replaced[name] = with_copies(value, copies.get(name, {}))
        else:
            replaced[name] = copies.get(name, value)
    return replaced


def has_shards(tensors: Iterable[Any]) -> bool:
    """Return whether this rank holds only shards of some of these tensors."""
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            return True
    return False


def find_shard(value: Any, place: str = "") -> str | None:
    """Return the place of the first shard in nested dicts and sequences, such as "rlvr.terms.0"; None without one."""
    if isinstance(value, DTensor):
        return place
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, list | tuple):
        parts = list(enumerate(value))
    else:
        return None
    places = (find_shard(part, f"{place}.{name}".lstrip(".")) for name, part in parts)
    for found in places:
        if found is not None:
            return found
    return None


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 over the parameters' names, types, shapes and bytes, in name order.

    Other ranks than the first return "".

    Collective if the weights are sharded; call it on every rank.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = full_tensor(parameter.detach())
        if rank() == 0:
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    if rank() == 0:
        return digest.hexdigest()
    return ""
