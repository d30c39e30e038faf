"""Attention within pieces of a row of patches, for vision towers that take images of any size.

Registered with transformers as the attention `vision_flash`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from lit_rlvr.distributed.collectives import to_device
from lit_rlvr.policy.spans import Spans, attend, available, kernel_dtype, takes_heads

VISION_ATTENTION = "vision_flash"


def vision_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute full attention within each piece of a row of T patches.

    Args:
        module: the layer.
        query, key, value: (1, heads, T, D).
        attention_mask: unused.
        scaling: of the scores.
        cu_seq_lens_q: (N + 1,) int, the ends of the pieces, from 0.
        max_length_q: patches of the longest piece.
        kwargs: what else transformers passes; unused.

    Returns:
        (1, T, heads, D), and None for the scores.
    """
    dtype = kernel_dtype(value)
    # (heads, T, D)
    q = query[0].to(dtype)
    k = key[0].to(dtype)
    v = value[0].to(dtype)
    if q.is_cuda and available(q.device, dtype) and takes_heads(q.shape[-1], v.shape[-1]):
        spans = Spans.alone(cu_seq_lens_q, max_length_q)
        out = attend(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), spans, scaling)
    else:
        out = _by_length(q, k, v, (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist(), scaling)
    return out.to(value.dtype)[None], None


def _by_length(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scaling: float) -> Tensor:
    """Attend with one call for all pieces of each length, since most windows of an image are equally large."""
    starts: defaultdict[int, list[int]] = defaultdict(list)
    end = 0
    for length in lengths:
        starts[length].append(end)
        end += length
    position_ids = []
    blocks = []
    for length, firsts in starts.items():
        place = to_device(torch.tensor(firsts)[:, None] + torch.arange(length), q.device)  # (n, L)
        position_ids.append(place.flatten())
        parts = []
        for x in (q, k, v):
            parts.append(x.index_select(1, position_ids[-1]).unflatten(1, place.shape).transpose(0, 1))
        with torch.autocast(q.device.type, enabled=False):
            out = scaled_dot_product_attention(parts[0], parts[1], parts[2], scale=scaling)  # (n, heads, L, D)
        blocks.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(blocks).index_select(0, torch.cat(position_ids).argsort())


AttentionInterface.register(VISION_ATTENTION, vision_attention)
