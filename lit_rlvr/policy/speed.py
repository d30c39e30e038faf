"""Faster or smaller training with the same results up to rounding: torch.compile, liger, checkpointing, malloc."""

from __future__ import annotations

import ctypes
import functools
import math
import platform
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_rlvr.common.files import available_memory
from lit_rlvr.common.log import log
from lit_rlvr.common.packages import missing_compiler, require
from lit_rlvr.errors import UserError
from lit_rlvr.policy.families import language_modules
from lit_rlvr.policy.precision import is_half
from lit_rlvr.policy.routes import same_routing

MIN_COMPILED_FLOPS = {"cpu": 4e14, "cuda": 7.5e16}
"""Floating-point operations of training from which compiling pays in bfloat16, twice by then. On a CPU it takes up to
80 s and then saves a seventh of each optimizer step (SmolLM2-135M); on an H200 30 s and a sixth (a shape of 1.5B)."""


def compiling_pays(parameters: int, tokens: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a run is long enough for `compile_layers` to pay, and say so in one line.

    In float32 the gain is half as large, and a compiled run could not be resumed to the same bits. Those bits are also
    what deterministic kernels are for.

    Args:
        parameters: of the model.
        tokens: the most that the run trains on; 0 = unknown.
        device: the one that computes.
        dtype: compute type.
    """
    is_short = 6.0 * parameters * tokens < MIN_COMPILED_FLOPS.get(device.type, math.inf)
    if is_short or not is_half(dtype) or torch.are_deterministic_algorithms_enabled():
        return False
    missing = missing_compiler()
    if missing is None:
        log.info("torch_compile: auto compiles the layers, because up to %.2g tokens are trained on", tokens)
    else:
        log.info("torch_compile: auto would compile the layers of this long run, but %s", missing)
    return missing is None


def compile_layers(model: nn.Module) -> None:
    """Compile each layer of the language model, in place, for rows with a shared prefix.

    Calls without segments, such as generation with a cache, run as before. Nothing is compiled before the first call.
    """
    torch._dynamo.config.optimize_ddp = False  # it cuts layers at DDP's buckets, which are not used here
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)  # kinds of calls
    for layer in decoder_layers(model):
        layer.forward = MethodType(_forward, layer)


def uncompile_layers(model: nn.Module) -> None:
    """Undo `compile_layers`."""
    for layer in decoder_layers(model):
        del layer.forward


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of the language model, first to last."""
    layers: list[nn.Module] = []
    for _, module in language_modules(model):
        if isinstance(module, GradientCheckpointingLayer):
            layers.append(module)
    return layers


def _forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    plain: Callable[..., Any] = type(layer).forward
    return (plain if kwargs.get("segments") is None else _compiled(plain))(layer, *args, **kwargs)


@functools.cache
def _compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return one compiled function for all layers of a kind."""
    return torch.compile(plain, dynamic=True)


def enable_checkpointing(model: Any) -> None:
    """Recompute each layer in the backward pass instead of keeping its activations; see `checkpointing`.

    Raises:
        UserError: no layer of the model supports it.
    """
    if not any(isinstance(layer, GradientCheckpointingLayer) for layer in model.modules()):
        raise UserError(
            f"model.compute.gradient_checkpointing: {type(model).__name__} does not support it; leave it off"
        )
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": same_routing})


@contextmanager
def checkpointing(model: nn.Module) -> Iterator[None]:
    """Within this context, checkpointed layers recompute if gradients are enabled.

    transformers ties checkpointing to training mode, which would also enable dropout, so only the layers' own flag is
    set. It is reset on exit because a checkpointed layer refuses the KV cache that generation needs.
    """
    layers = []
    for m in model.modules():
        if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing:
            layers.append(m)
    chosen = []
    for layer in layers:
        if torch.is_grad_enabled() and not layer.training:
            chosen.append(layer)
    for layer in chosen:
        layer.training = True
    try:
        yield
    finally:
        for layer in chosen:
            layer.training = False


def use_liger(model: nn.Module) -> None:
    """Replace normalisation, rotary embedding and MLP with liger-kernel's fused kernels, in place.

    Raises:
        UserError: there is no GPU, liger-kernel is not installed, or does not support the model.
    """
    if not torch.cuda.is_available():
        raise UserError("model.compute.liger: its kernels run on a GPU only; leave it off")
    require("liger_kernel", "model.compute.liger", "liger-kernel")
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    try:  # our scoring never calls the losses that it would fuse
        _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.compute.liger: {type(model).__name__} is not supported: {error}") from error


# malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next tensors instead of returning them to the system.

    By default every large CPU tensor is mapped afresh, and zeroing its pages on first touch takes up to a third of a
    training step. With a GPU, the copy of the weights that was on its way there would be kept for nothing, so there and
    with another C library this does nothing. torch should also use huge pages
    (`THP_MEM_ALLOC_ENABLE`, set in `lit_rlvr/__init__.py`), whose alignment keeps the heap from fragmenting.
    """
    if _keeps_freed_memory():
        libc = ctypes.CDLL(None)
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 1 << 26)):
            libc.mallopt(option, value)


def return_freed_memory() -> None:
    """Let glibc return what `keep_freed_memory` has kept, if this process holds more than half of what is left.

    Rollouts have tensors of other sizes each, for which kept blocks are too small: without this a run of SmolLM2 grows
    by about 1 GB a rollout until memory is used up. The next step is then a third slower, so it is not done each time.
    A step needs about as much again as the process holds before it, hence the half.
    """
    if not _keeps_freed_memory():
        return
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    if 2 * resident > available_memory():
        ctypes.CDLL(None).malloc_trim(0)


def _keeps_freed_memory() -> bool:
    return platform.libc_ver()[0] == "glibc" and not torch.cuda.is_available()
