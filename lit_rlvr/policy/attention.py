"""Attention for groups that share a prompt: a prompt attends to itself, a completion to its prompt and itself.

Registered with transformers as the attention `shared_prefix`. All tokens of a micro-batch lie in one row without
padding. On a GPU, and on a CPU if lengths differ a lot, `spans.py` computes only the scores that are needed; otherwise
prompts and completions are gathered into two padded blocks, which is faster on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_rlvr.distributed.collectives import to_device
from lit_rlvr.policy.precision import autocast_dtype
from lit_rlvr.policy.spans import Spans, attend, available, kernel_dtype, lay_out_spans

SHARED_PREFIX = "shared_prefix"
_SMALL = 1 << 21  # up to this many scores a CPU computes unfused: its fused kernel is slow on short segments
_WASTED = 1.6
"""Ratio of padded to needed scores above which a CPU uses spans (`benchmarks/attention.py`)."""
_BIAS = 1 << 24
"""The most numbers of a mask that a GPU turns into a bias at once, where the backward pass does not need it."""
_REFUSED = ("sliding_window", "softcap", "s_aux", "position_bias")


class CannotShare(Exception):
    """Error of a model whose attention is not plain causal attention, so that prompts cannot be shared."""


@dataclass
class Padded:
    """Positions of the P prompts and C completions among T tokens, as two padded blocks.

    Args:
        prompts: (P, Lp) long, the positions of each prompt's tokens, padded on the right with any position.
        completions: (C, Lc) long, the same for the completions' input tokens.
        owner: (C,) long, the index of each completion's prompt.
        mask: (C, 1, Lc, Lp + Lc) bool, True = attend: from a completion's tokens to its prompt and itself.
        order: (T,) long, each token's index in the flattened [prompts, completions].
    """

    prompts: Tensor
    completions: Tensor
    owner: Tensor
    mask: Tensor
    order: Tensor

    def to(self, device: torch.device) -> Padded:
        return Padded(*(to_device(getattr(self, name), device) for name in self.__dataclass_fields__))


Segments = Padded | Spans
"""Positions of prompts and completions in a row, in the form that one of the two attention methods takes."""


Method = Callable[[list[range], list[tuple[int, range]]], Segments]
"""Lays out prompts as ranges and completions as (prompt index, range)."""


def lay_out(
    prompts: list[range], completions: list[tuple[int, range]], device: torch.device, method: Method | None = None
) -> Segments:
    """Lay out by a method, or else by the one that is chosen for a device and these lengths.

    Args:
        prompts: the positions of each prompt.
        completions: of each completion, the index of its prompt and its positions.
        device: the one that computes.
        method: None = choose it.
    """
    if method is not None:
        return method(prompts, completions)
    dtype = autocast_dtype(device, torch.float32)
    wasteful = device.type != "cpu" or padded_scores(prompts, completions) > _WASTED
    chosen = lay_out_spans if wasteful and available(device, dtype) else lay_out_padded
    return chosen(prompts, completions)


def padded_scores(prompts: list[range], completions: list[tuple[int, range]]) -> float:
    """Return the ratio of scores in padded blocks to those needed; causal blocks count in full in both."""
    longest = max(map(len, prompts))
    widest = max((len(span) for _, span in completions), default=0)
    padded = len(prompts) * longest**2 + len(completions) * widest * (longest + widest)
    needed = sum(len(span) ** 2 for span in prompts)
    return padded / (needed + sum(len(span) * (len(prompts[p]) + len(span)) for p, span in completions))


def lay_out_padded(prompts: list[range], completions: list[tuple[int, range]]) -> Padded:
    """Build padded blocks from prompts as ranges and completions as (prompt index, range)."""
    position_ids, lengths = _pad(prompts)
    inner, widths = _pad([span for _, span in completions])
    owner = torch.tensor([p for p, _ in completions], dtype=torch.long)
    seen = torch.arange(position_ids.shape[1]) < lengths[owner, None]  # (C, Lp)
    causal = torch.ones(inner.shape[1], inner.shape[1], dtype=torch.bool).tril()
    mask = torch.cat([seen[:, None].expand(-1, len(causal), -1), causal.expand(len(owner), -1, -1)], 2)
    order = torch.empty(int(lengths.sum() + widths.sum()), dtype=torch.long)
    flat = 0
    for block, sizes in ((position_ids, lengths), (inner, widths)):
        kept = torch.arange(block.shape[1]) < sizes[:, None]
        order[block[kept]] = flat + torch.arange(block.numel()).view(block.shape)[kept]
        flat += block.numel()
    return Padded(position_ids, inner, owner, mask[:, None], order)


def _pad(spans: list[range]) -> tuple[Tensor, Tensor]:
    """Return N ranges as an index matrix (N, L), right-padded with 0, and their lengths (N,)."""
    lengths = torch.tensor([len(span) for span in spans], dtype=torch.long)
    start = torch.tensor([span.start for span in spans], dtype=torch.long)
    step = torch.arange(int(lengths.max()) if spans else 0)
    return torch.where(step < lengths[:, None], start[:, None] + step, 0), lengths


@torch.compiler.disable
def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute the attention of one row of T tokens by its segments; plain SDPA without segments (generation).

    Args:
        module: the layer.
        query: (1, heads, T, D).
        key, value: (1, key-value heads, T, D).
        attention_mask: of the model; used without segments.
        scaling: of the scores; None = 1 / sqrt(D).
        dropout: 0, as in evaluation mode.
        segments: of the row; None = without segments.
        kwargs: what else transformers passes.

    Returns:
        (1, T, heads, D), and None for the scores.

    Raises:
        CannotShare: the model uses a sliding window, a soft cap, sinks or a position bias.
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    refused = []
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            refused.append(name)
    if refused:
        raise CannotShare(", ".join(refused))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(segments, Spans):
        dtype = kernel_dtype(value)
        # (T, heads, D)
        q = query[0].transpose(0, 1).to(dtype)
        k = key[0].transpose(0, 1).to(dtype)
        v = value[0].transpose(0, 1).to(dtype)
        return attend(q, k, v, segments, scaling).to(value.dtype)[None], None
    repeats = query.shape[1] // key.shape[1]
    # (heads, T, D)
    q = query[0]
    k = repeat_kv(key, repeats)[0]
    v = repeat_kv(value, repeats)[0]
    # (heads, P, Lp, D)
    prompt_k = _take(k, segments.prompts)
    prompt_v = _take(v, segments.prompts)
    blocks = [_attend(_take(q, segments.prompts), prompt_k, prompt_v, None, scaling)]
    if segments.completions.numel():
        # (heads, C, Lc, D)
        own_k = _take(k, segments.completions)
        own_v = _take(v, segments.completions)
        both_k = torch.cat([prompt_k.index_select(1, segments.owner), own_k], 2)  # (heads, C, Lp + Lc, D)
        both_v = torch.cat([prompt_v.index_select(1, segments.owner), own_v], 2)
        mask = segments.mask.transpose(0, 1)  # (1, C, Lc, Lp + Lc)
        blocks.append(_attend(_take(q, segments.completions), both_k, both_v, mask, scaling))
    flat = torch.cat([block.flatten(1, 2) for block in blocks], 1)
    return flat.index_select(1, segments.order).transpose(0, 1)[None], None


def _take(x: Tensor, position_ids: Tensor) -> Tensor:
    """Gather (heads, T, D) at positions (N, L) into (heads, N, L, D)."""
    return x.index_select(1, position_ids.flatten()).unflatten(1, position_ids.shape)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Compute softmax(q k^T scaling + mask) v; no mask = causal.

    Args:
        q: (heads, N, L, D).
        k, v: (heads, N, S, D).
        mask: (1, N, L, S) bool.
        scaling: of the scores.
    """
    if q.device.type != "cpu":
        return _fused(q, k, v, mask, scaling)
    if q.shape[:-1].numel() * k.shape[-2] > _SMALL:
        with torch.autocast("cpu", enabled=False):  # the CPU's fused kernel is slower in bfloat16
            if v.dtype == torch.bfloat16:
                wide = (q.float(), k.float(), v.float())
            else:
                wide = (q, k, v)
            return scaled_dot_product_attention(*wide, mask, scale=scaling, is_causal=mask is None).to(v.dtype)
    if mask is None:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    scores = (q * scaling) @ k.transpose(-1, -2)
    weights = scores.float() if scores.dtype == torch.bfloat16 else scores
    return weights.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Compute `_attend` by a GPU's kernel, which turns a mask into a bias of floats for each head."""
    if mask is None or torch.is_grad_enabled():
        return scaled_dot_product_attention(q, k, v, mask, scale=scaling, is_causal=mask is None)
    rows = max(1, _BIAS // mask[..., :1, :].numel())
    pairs = zip(q.split(rows, -2), mask.split(rows, -2), strict=True)
    return torch.cat([scaled_dot_product_attention(part, k, v, seen, scale=scaling) for part, seen in pairs], -2)


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
