"""A device made up in Python, `acc`, that refuses what CUDA refuses and counts what makes CUDA wait.

Its tensors are a subclass with the device `acc:0`, each of which holds its numbers in a tensor on the CPU, so results
are real. Mixing them with CPU tensors is an error, with CUDA's exceptions (`_check_devices`). `EVENTS` lists each copy
to the device, each copy from it, and each operator for which CUDA has to wait for its result.

What it does not know: kernels, streams, other operators that make CUDA wait than those in `WAITS`, code that asks for
`device.type == "cuda"`, and torch's fused and foreach optimizers, which take no subclass.

The tensors say `is_cuda`, so the code takes its branches for GPUs.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import lit_rlvr

aten = torch.ops.aten
PACKAGE = str(Path(lit_rlvr.__file__).parent)
NAME = "acc"


@dataclass(frozen=True)
class Event:
    """A copy or a wait.

    Args:
        kind: `to` (a copy to the device), `from` (a copy from it, for which the CPU waits), or `wait`.
        operator: torch's name. where: our innermost function that is not in collectives.py, as
            `training/loss.py estimate`.
        waits: whether the CPU waits for the device.
    """

    kind: str
    operator: str
    where: str
    waits: bool


EVENTS: list[Event] = []
"""All so far."""


def note(kind: str, func: Any, waits: bool = True) -> None:
    EVENTS.append(Event(kind, str(func), _where(), waits))


def _where() -> str:
    frame: Any = sys._getframe(1)
    while frame is not None and (
        not (path := frame.f_code.co_filename).startswith(PACKAGE)
        or path.endswith("collectives.py")
        or frame.f_code.co_name.startswith("<")
    ):
        frame = frame.f_back
    if frame is None:
        return "elsewhere"
    return f"{path.removeprefix(PACKAGE + os.sep)} {frame.f_code.co_name}"


class OnDevice(Tensor):
    """A tensor on the made-up device; `held` is the CPU tensor with its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=torch.device(NAME, 0)
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def tolist(self) -> Any:
        """As `Tensor.tolist`, which torch refuses for a subclass."""
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Save the numbers: what is loaded is on the CPU, as with `map_location="cpu"`."""
        note("from", "pickle")
        return self.held.detach().clone().__reduce_ex__(protocol)


COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
TAKES_NUMBERS = {aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill_.Tensor, aten.where.self}
WAITS = {
    aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default,
    aten.repeat_interleave.Tensor, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.bincount.default,
}  # fmt: skip
"""Operators whose result, or its shape, CUDA has to wait for."""


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on the numbers; what it makes is on the device, unless another is asked for."""
    _check_devices(func, args, kwargs)
    _count(func, args, kwargs)
    device = kwargs.get("device")
    away = device is not None and torch.device(device).type == "cpu"
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = kwargs | {"pin_memory": False}
    result = STAND_INS.get(func, func)(*_each(_held, args), **_each(_held, kwargs))
    written = _written(func, args, kwargs)
    if written is not None:
        for tensor in _tensors(written):
            if isinstance(tensor, OnDevice) and tensor.shape != tensor.held.shape:
                raise NotImplementedError(f"{func} changes a shape in place")
        return written
    return result if away else _each(lambda x: OnDevice(x) if isinstance(x, Tensor) else x, result)


def _called(func: Any, *args: Any, **kwargs: Any) -> Any:
    return run(func, args, kwargs)


def _each(change: Callable[[Any], Any], x: Any) -> Any:
    """Change each value of an operator's arguments or results."""
    if isinstance(x, tuple | list):
        return type(x)([_each(change, y) for y in x])
    if isinstance(x, dict):
        return {name: _each(change, y) for name, y in x.items()}
    return change(x)


def _tensors(x: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _each(lambda y: found.append(y) if isinstance(y, Tensor) else None, x)
    return found


def _held(x: Any) -> Any:
    return x.held if isinstance(x, OnDevice) else x


@functools.cache
def _outputs(func: Any) -> tuple[tuple[int, str], ...] | None:
    """The arguments that an operator writes to and returns, by position and name; None = it makes new tensors."""
    schema = func._schema
    names = {
        name: (i, argument.name)
        for i, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        for name in argument.alias_info.before_set
    }
    found = [r.alias_info for r in schema.returns]
    if not names:
        return None
    assert all(alias is not None and alias.is_write for alias in found), f"{func} writes and makes tensors"
    return tuple(names[next(iter(alias.before_set))] for alias in found)


def _written(func: Any, args: Any, kwargs: Any) -> Any:
    outputs = _outputs(func)
    if outputs is None:
        return None
    found = [args[i] if i < len(args) else kwargs[name] for i, name in outputs]
    return found[0] if len(found) == 1 else tuple(found)


def _check_devices(func: Any, args: Any, kwargs: Any) -> None:
    """Refuse operators on tensors of both devices, except for what CUDA takes: copies, CPU tensors without dimensions
    as numbers, and indices."""
    if func in COPIES:
        return
    tensors = _tensors((args, kwargs))
    others = [x for x in tensors if not isinstance(x, OnDevice)]
    if not others or len(others) == len(tensors):
        return
    if torch.Tag.pointwise in func.tags or func in TAKES_NUMBERS:
        others = [x for x in others if x.dim()]
    if func in INDEXED:  # indices on the CPU are copied to the device
        own, indices, *values = args
        others = [x for x in (own, *values) if isinstance(x, Tensor) and not isinstance(x, OnDevice) and x.dim()]
        if not others:
            EVENTS.extend(Event("to", str(func), _where(), True) for x in indices if type(x) is Tensor)
    if others:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} got one of shape {tuple(others[0].shape)} on "
            f"{others[0].device} and others on {NAME}:0"
        )


def _count(func: Any, args: Any, kwargs: Any) -> None:
    """Note copies, and operators that CUDA waits for."""
    if func is aten.copy_.default:
        to, source = args[:2]
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))  # else it is put into a queue
        if isinstance(to, OnDevice) and not isinstance(source, OnDevice):
            note("to", func, waits or not getattr(source, "pinned", False))
        elif isinstance(source, OnDevice) and not isinstance(to, OnDevice):
            note("from", func)
    elif func is aten._to_copy.default:
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu":
            note("from", func)
    elif func in WAITS or (func in INDEXED and _has_mask(func, args)):
        note("wait", func)


def _has_mask(func: Any, args: Any) -> bool:
    """Return whether one of the indices is a mask, whose nonzero entries CUDA has to count; it fills a mask with one
    number without counting."""
    masks = [x for x in args[1] if isinstance(x, OnDevice) and x.dtype in (torch.bool, torch.uint8)]
    return bool(masks) and (func is aten.index.Tensor or args[2].numel() > 1 or len(args[1]) > 1)


class Module(_DummyBackendModule):
    """`torch.acc`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def pinned(self: Tensor, device: Any = None) -> Tensor:
    """`Tensor.pin_memory` for the device: a copy that it remembers."""
    copied: Any = self.clone()
    copied.pinned = True
    return copied


class MadeUpAccelerator(Accelerator):
    """The device as Lightning wants it."""

    def setup_device(self, device: torch.device) -> None:
        assert device.type == NAME

    def teardown(self) -> None:
        pass

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def trainer_options(precision: str = "32-true") -> dict[str, Any]:
    """The options of a `Trainer` that trains on the device; Lightning would give an unknown one autocast of CUDA."""
    strategy = SingleDeviceStrategy(torch.device(NAME, 0), accelerator=MadeUpAccelerator())
    plugins = [] if precision == "32-true" else [MixedPrecision(precision, NAME)]  # type: ignore[arg-type]
    return {"accelerator": "auto", "strategy": strategy, "plugins": plugins}


OURS = (
    aten.copy_.default,
    aten._local_scalar_dense.default,
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
)
"""Operators without a fallback: `torch.tensor` calls the first two with tensors of the subclass, which torch gives no
fallback; torch's own of the others resize a tensor."""


def flash_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ends: Tensor,
    k_ends: Tensor,
    longest_q: int,
    longest_k: int,
    dropout: float,
    causal: bool,
    debug: bool,
    scale: float,
) -> tuple[Tensor, ...]:
    """`_flash_attention_forward`, which torch has for GPUs alone: output (T, H, D) and log-sum-exp (H, T)."""
    out, lse = torch.zeros_like(q), torch.full((q.shape[1], len(q)), -torch.inf)
    for a, b in _blocks(q, k, q_ends, k_ends, longest_q, longest_k):
        scores = _scores(q[a], k[b], causal, scale)
        lse[:, a] = scores.logsumexp(-1)
        out[a] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), _repeated(v[b], q)).to(q.dtype)
    return out, lse, torch.zeros(2, dtype=torch.uint64), torch.zeros(0), torch.zeros(0)


def flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    q_ends: Tensor,
    k_ends: Tensor,
    longest_q: int,
    longest_k: int,
    dropout: float,
    causal: bool,
    state: Tensor,
    unused: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    """`_flash_attention_backward`: the gradients of queries, keys and values (Dao et al. 2022, algorithm 4)."""
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for a, b in _blocks(q, k, q_ends, k_ends, longest_q, longest_k):
        weights = (_scores(q[a], k[b], causal, scale) - lse[:, a, None]).exp()
        by_weight = torch.einsum("qhd,khd->hqk", grad[a].float(), _repeated(v[b], q))
        by_score = weights * (by_weight - (grad[a].float() * out[a].float()).sum(-1).t()[:, :, None]) * scale
        dq[a] = torch.einsum("hqk,khd->qhd", by_score, _repeated(k[b], q)).to(q.dtype)
        for total, each in (
            (dk, torch.einsum("hqk,qhd->khd", by_score, q[a].float())),
            (dv, torch.einsum("hqk,qhd->khd", weights, grad[a].float())),
        ):
            total[b] = each.unflatten(1, (k.shape[1], -1)).sum(2).to(k.dtype)
    return dq, dk, dv


def _blocks(q: Tensor, k: Tensor, q_ends: Tensor, k_ends: Tensor, longest_q: int, longest_k: int) -> Any:
    """Yield the slices of queries and keys of each block, and refuse what CUDA's kernel refuses."""
    assert {q.dtype, k.dtype} <= {torch.bfloat16, torch.float16}, "the kernel takes 16 bits"
    assert (q_ends.dtype, k_ends.dtype) == (torch.int32, torch.int32), "the ends of blocks are int32"
    for (a, b), (c, d) in zip(pairwise(q_ends.tolist()), pairwise(k_ends.tolist()), strict=True):
        assert b - a <= longest_q and d - c <= longest_k, "a block is longer than the longest"
        yield slice(a, b), slice(c, d)


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """Return (H, Q, K)."""
    scores = torch.einsum("qhd,khd->hqk", q.float(), _repeated(k, q)) * scale
    hidden = ~torch.ones(scores.shape[1:], dtype=torch.bool).tril()
    return scores.masked_fill(hidden, -torch.inf) if causal else scores


def _repeated(x: Tensor, q: Tensor) -> Tensor:
    """Repeat keys or values (T, K, D) for H heads of queries."""
    return x.float().repeat_interleave(q.shape[1] // x.shape[1], 1)


STAND_INS: dict[Any, Callable[..., Any]] = {
    aten._flash_attention_forward.default: flash_forward,
    aten._flash_attention_backward.default: flash_backward,
}

IN_16_BITS = ("linear", "mm", "bmm", "matmul", "addmm", "baddbmm", "scaled_dot_product_attention", "conv2d", "conv3d")
IN_32_BITS = ("softmax.int", "log_softmax.int", "layer_norm", "pow.Tensor_Scalar", "sum", "sum.dim_IntList", "exp")
"""Operators that CUDA's autocast runs in 16 and in 32 bits, as far as the models here use them."""


def _cast(func: Any, wide: bool, *args: Any, **kwargs: Any) -> Any:
    """Run an operator under autocast."""
    dtype = torch.float32 if wide else torch.get_autocast_dtype(NAME)

    def cast(x: Any) -> Any:
        floats = isinstance(x, OnDevice) and x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype) if floats else x

    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(keys):
        return func(*_each(cast, args), **_each(cast, kwargs))


LIBRARIES: list[torch.library.Library] = []


def register() -> None:
    """Make the device up, for the rest of the process."""
    _setup_privateuseone_for_python_backend(NAME, Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_called, "PrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    ours = torch.library.Library("aten", "IMPL")
    for func in OURS:
        ours.impl(func.name().removeprefix("aten::"), functools.partial(_called, func), "PrivateUse1")
    for names, wide in ((IN_16_BITS, False), (IN_32_BITS, True)):
        for name in names:
            packet, _, overload = name.partition(".")
            func = getattr(getattr(aten, packet), overload or "default")
            ours.impl(name, functools.partial(_cast, func, wide), "AutocastPrivateUse1")
    LIBRARIES.extend((library, ours))
    torch.autograd.set_multithreading_enabled(False)  # so that `_where` finds the caller of a backward pass
    Tensor.pin_memory = pinned  # type: ignore[method-assign, assignment]
