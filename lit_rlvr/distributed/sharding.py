"""Weights split over all processes: each keeps its share of every parameter, and a layer is gathered where it runs.

Source: Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel"; here by torch's
`fully_shard` ("FSDP2").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_rlvr.errors import UserError


def shard(root: nn.Module, mesh: DeviceMesh, also_called: Sequence[str] = ()) -> None:
    """Split a module's parameters over the processes of a mesh, in place; the values are those of the first process.

    Each layer (of the language model and of a vision tower) is gathered for its own forward and backward pass only;
    what stands outside of them, such as the embeddings, is gathered while `root` itself runs. So `root` is to be
    called, not a part of it; the first time before anything else is done with it.

    Args:
        root: whole in the first process; in the others its tensors may be on the meta device.
        mesh: of the dimensions `data_parallel` and `tensor_parallel`; the latter of size 1.
        also_called: methods of `root` that compute too, besides its own call.

    Raises:
        UserError: single tensors are to be split for tensor parallelism.
    """
    if mesh["tensor_parallel"].size() > 1:
        raise UserError("trainer.strategy: tensor_parallel_size above 1 is not supported; use --config strategy/fsdp2")
    layers = [module for module in root.modules() if isinstance(module, GradientCheckpointingLayer)]
    for module in (*reversed(layers), root):
        _fill(module, torch.device(mesh.device_type))
        fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=True)
    for name in also_called:
        register_fsdp_forward_method(root, name)


def _fill(module: nn.Module, device: torch.device) -> None:
    """Give a module, apart from what is sharded already, the tensors of the first process."""
    filled: dict[Tensor, Tensor] = {}  # tied ones stay tied
    for part in module.modules():
        own: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for tensors in own:
            for name, tensor in tensors.items():
                if tensor is None or isinstance(tensor, DTensor):
                    continue
                if tensor not in filled:
                    filled[tensor] = _from_first(tensor, device)
                tensors[name] = filled[tensor]


def _from_first(tensor: Tensor, device: torch.device) -> Tensor:
    values = tensor.detach().to(device) if dist.get_rank() == 0 else torch.empty_like(tensor, device=device)
    dist.broadcast(values, src=0)
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


@contextmanager
def gathered(root: nn.Module) -> Iterator[None]:
    """All weights whole on every process in here, where each may run the parts of a module on its own.

    All processes enter it together. Nothing happens to a module that is not sharded.
    """
    modules = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor on every process. Collective: call it on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(module: nn.Module) -> dict[str, Any]:
    """A module's state, whole and on the CPU; under sharding on the first process only."""
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_whole_weights(module: nn.Module, weights: dict[str, Any]) -> None:
    """Take over whole weights, which every process has."""
    set_model_state_dict(module, weights, options=StateDictOptions(full_state_dict=True))
