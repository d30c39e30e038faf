"""The trainer's supported precisions, the compute type of each, and what autocast leaves in float32."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from lit_rlvr.common.seeds import derive_seed

PRECISIONS = ("32-true", "bf16-mixed")


def compute_dtype(precision: str) -> torch.dtype:
    """Return the type of matrix products under a trainer's precision."""
    if precision == "bf16-mixed":
        return torch.bfloat16
    return torch.float32


def is_half(dtype: torch.dtype) -> bool:
    """Return whether results of a compute type are rounded to 16 bits."""
    return dtype not in (torch.float32, torch.float64)


def training_autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Return the context in which Lightning trains with a compute type."""
    if is_half(dtype):
        return torch.autocast(device.type, dtype, cache_enabled=False)
    return nullcontext()


def autocast_dtype(device: torch.device, otherwise: torch.dtype) -> torch.dtype:
    """Return the type of matrix products within autocast, and outside of it another one."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return otherwise


@contextmanager
def more_bits_than_autocast(device: torch.device) -> Iterator[None]:
    """Compute in float32, on a GPU in TF32, which keeps eight times as many digits as bfloat16."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = True
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.allow_tf32 = before


def forbid_tf32() -> None:
    """Let a GPU's convolutions in float32 keep all 24 bits, as its matrix products do.

    torch gives the patches of a vision tower to cuDNN in TF32 by default. This is torch's older setting, which all
    versions know; mixing it with the newer one is an error there.
    """
    torch.backends.cudnn.allow_tf32 = False


def round_residual_stream(model: nn.Module) -> None:
    """Let embeddings and norms return the compute type of autocast, so that the residual stream has it, in place.

    Autocast alone leaves them in float32, and rounds their outputs anew for each matrix product. The models' own
    inference in 16 bits, vLLM and FSDP2 compute as this does.
    """
    for module in model.modules():
        parameters = [*module.parameters(recurse=False)]
        is_norm = (
            bool(parameters) and not [*module.children()] and all(parameter.dim() == 1 for parameter in parameters)
        )
        if is_norm or isinstance(module, nn.Embedding):
            module.register_forward_hook(_to_compute_type)


def _to_compute_type(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output.to(autocast_dtype(output.device, output.dtype))


class _AutocastExperts(TorchFunctionMode):
    """Casts the inputs of grouped products, which autocast leaves as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._grouped_mm:
            args = [x.to(autocast_dtype(x.device, x.dtype)) for x in args]
        return func(*args, **(kwargs or {}))


@torch.compiler.disable
def _experts(module: nn.Module, *args: Tensor) -> Tensor:
    """Compute a mixture's experts in the type of autocast, in which transformers leaves float32 weights as they are."""
    with _AutocastExperts():
        return grouped_mm_experts_forward(module, *args)


ALL_EXPERTS_FUNCTIONS.register("grouped_mm", _experts)


HALF_DIGIT = (1 << 15) - 1
"""The numbers of float32 on each side of a number of bfloat16 that are rounded to it, without the one halfway to the
next."""
DITHER_BLOCK = 1 << 16
"""Weights dithered at once, so that a CPU keeps them in its cache; each block of a matrix has the same offsets."""


@torch.no_grad()
def dither(name: str, weight: Tensor) -> None:
    """Move each number of a float32 matrix to a random one of those that bfloat16 rounds to the same, in place.

    What matrix products take stays exactly what was published. From then on, a step changes the rounding of as many
    weights as its size says, so that the rounded weights follow the steps on average. Published weights lie on the grid
    of bfloat16, or at regular distances from it. On the grid, a weight of 0.03 would first change after six steps of
    1e-5 in one direction, which is about what AdamW does at that learning rate. Halfway between two numbers, as an
    eighth of the weights published in float16, half of them would change by a whole digit in the first step.

    Vectors, such as the weights of norms, stay as they are, because training does not round them. Zeros stay zero.

    Args:
        name: seeds the random numbers: all runs of a model begin with the same weights.
        weight: (..., in), float32.
    """
    if weight.dim() < 2:
        return
    generator = torch.Generator().manual_seed(derive_seed("dither", name))
    drawn = torch.empty(min(weight.numel(), DITHER_BLOCK), dtype=torch.int32)  # on the CPU: the same on all devices
    offset = drawn.random_(-HALF_DIGIT, HALF_DIGIT + 1, generator=generator).to(weight.device)
    for block in weight.view(-1).split(DITHER_BLOCK):
        rounded = block.bfloat16().float()
        # Without its sign, the bits of a float are a whole number that grows with it: the offset moves that.
        moved = (rounded.view(torch.int32) + offset[: len(block)]).view(torch.float32)
        block.copy_(torch.where(rounded == 0, block, moved))


def fast_bf16(device: str) -> bool:
    """Return whether a device, "cpu" or "cuda", multiplies bfloat16 in hardware."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("arm64", "aarch64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def auto_precision(accelerator: object) -> str:
    """Return the precision of a run on this machine: bf16-mixed if the hardware multiplies bfloat16, else 32-true.

    Args:
        accelerator: the trainer's option.
    """
    cuda = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
    if fast_bf16("cuda" if cuda else "cpu"):
        return "bf16-mixed"
    return "32-true"


@lru_cache
def bf16_slowdown() -> float:
    """Return this CPU's time for a matrix product in bfloat16 divided by that in float32; below 1, bfloat16 is faster.

    CPUs without bfloat16 instructions emulate it, which takes about a hundred times as long.
    """
    seconds = []
    for dtype in (torch.bfloat16, torch.float32):
        matrix = torch.ones(256, 256, dtype=dtype)
        matrix @ matrix
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    return seconds[0] / seconds[1]


def use_deterministic_kernels() -> None:
    """Enable deterministic CUDA kernels; call it before the first matrix product.

    cuBLAS reads its variables once, so they are those of vLLM's batch-invariant mode, which sets them when it starts.
    An operation without a deterministic kernel raises: told to warn instead, torch leaves the backward pass of flash
    attention nondeterministic.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "1")
    torch.use_deterministic_algorithms(True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # every `empty` would be written for nothing
