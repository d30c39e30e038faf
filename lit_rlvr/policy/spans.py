"""Attention of prompts and completions of any length, without padding, masks or repeated keys.

The tokens of a micro-batch lie in one row: all prompts, then all completions, group after group. Two flash-attention
calls compute the attention: of every segment to itself (causal), and of all completions of a group to their prompt,
where queries and keys are slices of the row. A completion's two results are merged by their log-sum-exps. The backward
pass gives both calls the merged output and log-sum-exp, from which each computes its part of the exact gradient.

Source: Dao et al. 2022, "FlashAttention", algorithms 1 and 4 (the backward pass needs only each query's output
and log-sum-exp); Milakov and Gimelshein 2018 for merging parts of a softmax.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.distributed.collectives import to_device
from lit_rlvr.policy.precision import autocast_dtype

_FLASH = {
    "_flash_attention_forward": (
        "query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal",
        "return_debug_mask", "scale",
    ),
    "_flash_attention_backward": (
        "grad_out", "query", "key", "value", "out", "logsumexp", "cum_seq_q", "cum_seq_k", "max_q", "max_k",
        "dropout_p", "is_causal", "rng_state", "unused", "scale",
    ),
}  # fmt: skip
"""Operators underlying `torch.nn.attention.varlen`, whose backward pass accepts no gradient of the log-sum-exp, and
the arguments used here. They are not public, so `available` checks that their signatures match."""

FLASH_CAPABILITY = (8, 0)
"""Compute capability of the first GPUs with these kernels (Ampere)."""
MAX_HEAD = 256
"""Largest size of a head that they take."""
FLASH_3_MAJOR = 9
"""Compute capability, before the point, of the GPUs with FlashAttention 3 (Hopper)."""
FLASH_3_MODULE = "flash_attn_interface"
"""Module of the package from which torch takes FlashAttention 3."""


@dataclass
class Blocks:
    """N pairs of a block of queries and a block of keys.

    Args:
        query_ends, key_ends: (N + 1,) int32, the ends of the blocks, which are contiguous and in order, starting at 0.
        longest: queries and keys of the longest blocks. Of queries at least 2: told 1, a GPU's kernel takes every block
            to have exactly one, and fails if one has none.
        queries, keys: lengths of the blocks, for a CPU, which takes them one by one.
    """

    query_ends: Tensor
    key_ends: Tensor
    longest: tuple[int, int]
    queries: list[int]
    keys: list[int]

    @classmethod
    def of(cls, queries: list[int], keys: list[int]) -> Blocks:
        query_ends = torch.tensor([0, *accumulate(queries)], dtype=torch.int32)
        key_ends = torch.tensor([0, *accumulate(keys)], dtype=torch.int32)
        return cls(query_ends, key_ends, (max(2, *queries), max(keys)), queries, keys)

    def to(self, device: torch.device) -> Blocks:
        return replace(self, query_ends=to_device(self.query_ends, device), key_ends=to_device(self.key_ends, device))


@dataclass
class Spans:
    """The blocks of a row of T tokens that attend to each other.

    Args:
        own: each segment attending to itself.
        shared: all completions of each group attending to their prompt; None = there are no completions.
        prompts: tokens of all prompts, which come first.
        causal: whether a token of a segment sees only the ones up to it.
    """

    own: Blocks
    shared: Blocks | None = None
    prompts: int = 0
    causal: bool = True

    @classmethod
    def alone(cls, ends: Tensor, longest: int) -> Spans:
        """Build segments that attend to all of themselves and to nothing else, on a GPU.

        Args:
            ends: (N + 1,) int, from 0.
            longest: tokens of the longest segment.
        """
        return cls(Blocks(ends.int(), ends.int(), (longest, longest), [], []), causal=False)

    def to(self, device: torch.device) -> Spans:
        return replace(self, own=self.own.to(device), shared=None if self.shared is None else self.shared.to(device))


def lay_out_spans(prompts: list[range], completions: list[tuple[int, range]]) -> Spans:
    """Build the spans of a row: all prompts, then all completions in the order of their prompts, without gaps.

    Args:
        prompts: the positions of each prompt.
        completions: of each completion, the index of its prompt and its positions.
    """
    lengths = [0] * len(prompts)
    for p, span in completions:
        lengths[p] += len(span)
    keys = [len(span) for span in prompts]
    sizes = [*keys, *(len(span) for _, span in completions)]
    return Spans(Blocks.of(sizes, sizes), Blocks.of(lengths, keys) if any(lengths) else None, sum(keys))


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether there is a kernel for a device and a type.

    There always is on a CPU, and on an NVIDIA GPU from Ampere on for 16-bit types, if torch's operators take the
    arguments used here.
    """
    if device.type == "cpu":
        return True
    is_half = dtype in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or not is_half or torch.cuda.get_device_capability(device) < FLASH_CAPABILITY:
        return False
    for name, wanted in _FLASH.items():
        operator = getattr(torch.ops.aten, name, None)
        if operator is None or [a.name for a in operator.default._schema.arguments][: len(wanted)] != [*wanted]:
            return False
    return True


def has_flash_attention_3(device: torch.device) -> bool:
    """Return whether FlashAttention 3 is installed and is for a device."""
    if device.type != "cuda" or find_spec(FLASH_3_MODULE) is None:
        return False
    return torch.cuda.get_device_capability(device)[0] == FLASH_3_MAJOR


def takes_heads(key: int, value: int) -> bool:
    """Return whether a GPU's kernel takes heads of these sizes of keys (and queries) and of values."""
    return key == value and key <= MAX_HEAD and key % 8 == 0


def kernel_dtype(value: Tensor) -> torch.dtype:
    """Compute type of the kernels: autocast's on a GPU; never bfloat16 on a CPU, where it is slower."""
    if not value.is_cuda:
        if value.dtype == torch.bfloat16:
            return torch.float32
        return value.dtype
    return autocast_dtype(value.device, value.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float) -> Tensor:
    """Compute the attention of a row of T tokens by its spans.

    Args:
        query: (T, H, D).
        key, value: (T, K, D) with H a multiple of K.
        spans: of the row.
        scale: of the scores.

    Returns:
        (T, H, D). Memory use is linear in T.
    """
    out: Tensor = _Attend.apply(query, key, value, spans, scale)
    return out


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float) -> Tensor:
        out, lse = _kernel(q, k, v, spans.own, spans.causal, scale)
        if spans.shared is not None:
            n = spans.prompts
            other, shared_lse = _kernel(q[n:], k[:n], v[:n], spans.shared, False, scale)
            own_lse = lse[:, n:]
            total = torch.logaddexp(own_lse, shared_lse)  # (H, Q)
            out[n:] = out[n:] * _weight(own_lse, total) + other * _weight(shared_lse, total)  # in float32, rounded once
            lse[:, n:] = total
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.spans = spans
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        spans: Spans = ctx.spans
        grad = grad.contiguous()
        dq, dk, dv = _gradient(grad, q, k, v, out, lse, spans.own, spans.causal, ctx.scale)
        if spans.shared is not None:
            n = spans.prompts
            results = out[n:], lse[:, n:].contiguous()
            more = _gradient(grad[n:], q[n:], k[:n], v[:n], *results, spans.shared, False, ctx.scale)
            for total, part in zip((dq[n:], dk[:n], dv[:n]), more, strict=True):
                total += part
        return dq, dk, dv, None, None


def _weight(part: Tensor, total: Tensor) -> Tensor:
    """Return the weight (Q, H, 1) of one part in the merged softmax, from log-sum-exps (H, Q)."""
    return (part - total).exp().t()[..., None]


def _kernel(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Return the output (T, H, D) and log-sum-exp (H, T) of each block of queries on its block of keys.

    Args:
        q: (T, H, D).
        k, v: (S, K, D).
        blocks: which queries attend to which keys.
        causal: within a block, to no later key.
        scale: of the scores.
    """
    if q.is_cuda:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            blocks.query_ends,
            blocks.key_ends,
            *blocks.longest,
            0.0,
            causal,
            False,
            scale=scale,
        )
        return out, lse
    parts = []
    for a, b, c in zip(_heads(q, blocks.queries), _heads(k, blocks.keys), _heads(v, blocks.keys), strict=True):
        if a.shape[2]:
            parts.append(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(a, b, c, 0.0, causal, scale=scale))
    return torch.cat([out[0].transpose(0, 1) for out, _ in parts]), torch.cat([lse[0] for _, lse in parts], 1)


def _gradient(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, blocks: Blocks, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with respect to q, k and v of `_kernel`.

    The other arguments are those of `_kernel`.

    Args:
        grad: (T, H, D) gradient with respect to the output.
        out, lse: (T, H, D) and (H, T), which may come from a softmax over more keys.
    """
    if q.is_cuda:
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # dropout state, unused
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            grad,
            q,
            k,
            v,
            out,
            lse,
            blocks.query_ends,
            blocks.key_ends,
            *blocks.longest,
            0.0,
            causal,
            state,
            torch.empty(0, device=q.device),
            scale=scale,
        )
        return dq, dk, dv
    pieces = zip(
        *(_heads(x, blocks.queries) for x in (grad, q)),
        *(_heads(x, blocks.keys) for x in (k, v)),
        _heads(out, blocks.queries),
        lse[None].split(blocks.queries, 2),
        strict=True,
    )
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    gradients = []
    for piece in pieces:
        _, query, key, value, *_ = piece
        if query.shape[2]:
            of_piece = backward(*piece, 0.0, causal, scale=scale)
        else:
            of_piece = (torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value))
        gradients.append([part[0].transpose(0, 1) for part in of_piece])
    dq, dk, dv = map(torch.cat, zip(*gradients, strict=True))
    return dq, dk, dv


def _heads(x: Tensor, lengths: list[int]) -> list[Tensor]:
    """Reshape (T, H, D) into blocks (1, H, L, D)."""
    heads = []
    for piece in x.split(lengths):
        heads.append(piece.transpose(0, 1)[None])
    return heads
