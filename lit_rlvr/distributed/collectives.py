"""Sums and gathers over all ranks (in a single process each returns its input), and copies to the computing device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lit_rlvr.errors import UserError


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`, or itself if it is there already.

    A copy to a GPU is only put into its queue, so that the GPU finishes earlier work meanwhile. That needs page-locked
    memory, which torch keeps until the copy is done; from other memory, this process would wait for it.
    """
    if device.type not in ("cpu", "meta") and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def index_tensor(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return numbers as a long tensor on `device`; indexing with a list would make the CPU wait for the GPU."""
    return to_device(torch.tensor(values, dtype=torch.long), device)


_T = TypeVar("_T")
DEFAULT_GROUP_LOCK = threading.RLock()
"""Lock of torch's default process group: vLLM holds it while it replaces the group, the writer of a checkpoint while it
needs it."""


def world_size() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


def rank() -> int:
    if world_size() > 1:
        return dist.get_rank()
    return 0


def lost_peer(error: BaseException) -> bool:
    """Return whether an exception means that another rank has died or timed out."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _sent(values: Tensor) -> Tensor:
    """Return a copy of a tensor on a device that the process group's backend accepts: NCCL takes only GPU tensors."""
    if dist.get_backend() == "nccl" and not values.is_cuda:
        return to_device(values, torch.device("cuda", torch.cuda.current_device()))
    return values.clone()


def all_sum(values: Tensor) -> Tensor:
    """Return the elementwise sum over ranks, on every rank and on the device of `values`."""
    if world_size() == 1:
        return values
    sent = _sent(values)
    dist.all_reduce(sent)
    return sent.to(values.device)


def all_max(value: int, device: torch.device) -> int:
    """Return the maximum over ranks, on every rank."""
    if world_size() == 1:
        return value
    tensor = _sent(torch.tensor(value, device=device))
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def gather_objects(value: _T) -> list[_T]:
    """Return every rank's (small, picklable) object, in rank order."""
    if world_size() == 1:
        return [value]
    parts: list[_T] = [value] * world_size()
    dist.all_gather_object(parts, value)
    return parts


def raise_on_all_ranks(action: Callable[[], Any], kind: type[Exception]) -> Any:
    """Return what `action` returns, and tell all ranks whether it worked on each.

    Collective: call it on every rank.

    Args:
        action: what each rank does.
        kind: the error that a rank raises when the action failed on another one.

    Raises:
        UserError: the action raised it on this rank, which ends the run; the other ranks are not told.
        Exception: the action failed: where it did, its own error, and on the other ranks one of `kind`.
    """
    failed: Exception | None = None
    try:
        result = action()
    except UserError:  # it ends the run
        raise
    except Exception as error:  # of any kind: the other ranks would wait for this one
        failed = error
    messages = []
    for text in gather_objects(None if failed is None else str(failed)):
        if text is not None:
            messages.append(text)
    if failed is not None:
        raise failed
    if messages:
        raise kind(messages[0])
    return result


def gather_rows(local: Tensor) -> Tensor:
    """Concatenate the ranks' tensors (P_local, ...), of equal shape, in rank order: (P, ...)."""
    if world_size() == 1:
        return local
    sent = _sent(local.contiguous())
    parts = []
    for _ in range(world_size()):
        parts.append(torch.empty_like(sent))
    dist.all_gather(parts, sent)
    return torch.cat(parts).to(local.device)


def gather_columns(columns: Sequence[Tensor]) -> list[Tensor]:
    """Return `gather_rows` of several tensors (P_local, G), bool or float, in one exchange: (P, G) each."""
    if world_size() == 1:
        return [*columns]
    gathered = gather_rows(torch.stack([column.double() for column in columns], 1))  # (P, columns, G)
    return [values.to(column.dtype) for values, column in zip(gathered.unbind(1), columns, strict=True)]


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each parameter's gradient by its mean over ranks, in place."""
    for parameter in parameters:
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size()


def leave_out_of_buckets(module: nn.Module) -> None:
    """Keep DDP from allocating buckets for a module's gradients, 4 bytes a parameter: `average_gradients` needs none.

    DDP insists on one parameter, which is the smallest.
    """
    trained = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            trained[name] = parameter
    smallest = min(trained, key=lambda name: trained[name].numel())
    others = []
    for name, _ in module.named_parameters():
        if name != smallest:
            others.append(name)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, others)


def broadcast_first(parameters: Iterable[Tensor]) -> None:
    """Give every rank the first one's values, in place."""
    for parameter in parameters:
        dist.broadcast(parameter.detach(), src=0)
