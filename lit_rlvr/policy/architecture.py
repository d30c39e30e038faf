"""Reads from a config what differs between architectures: sizes of layers, recurrent layers, and the last logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names under which configs have the number of experts of a layer."""
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "experts_per_token", "moe_topk")
"""Names under which they have the number of experts that a token uses."""


def layer_configs(config: Any) -> list[Any]:
    """Return the config of each layer of the language model: layers of Gemma 4 differ in the size of their heads."""
    return list(config.get_text_config().per_layer_config)


def head_sizes(layer: Any) -> tuple[int, int]:
    """Return the sizes of a layer's heads: of keys (and queries), and of values.

    Args:
        layer: its config.
    """
    key = (
        getattr(layer, "qk_head_dim", None)
        or getattr(layer, "head_dim", None)
        or layer.hidden_size // layer.num_attention_heads
    )
    return key, getattr(layer, "v_head_dim", None) or key


def key_width(layer: Any) -> int:
    """Return the total width of a layer's key heads.

    Args:
        layer: its config.
    """
    heads = getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads
    return heads * head_sizes(layer)[0]


def cached_widths(config: Any) -> list[int]:
    """Return the widths of a token's keys in the layers whose cache holds some.

    These are neither recurrent layers nor those that use the keys of others.
    """
    layers = DynamicCache(config=config).layers
    return [key_width(c) for c, layer in zip(layer_configs(config), layers) if isinstance(layer, DynamicLayer)]  # noqa: B905  # shared ones are last


def has_recurrent_layers(config: Any) -> bool:
    """Return whether layers have a state of their own: gated delta nets, state spaces, convolutions.

    Such a layer sees the tokens of its row in their order, so completions cannot share a prompt in one row.
    """
    for layer in DynamicCache(config=config).layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            return True
    return False


def first_of(config: Any, names: tuple[str, ...]) -> int:
    """Return a count that configs have under one of several names; 0 if there is none."""
    return next((count for name in names if (count := getattr(config, name, None))), 0)


def has_experts(layer: Any) -> bool:
    """Return whether tokens choose among experts in a layer.

    Args:
        layer: its config.
    """
    return first_of(layer, EXPERTS) > 1


def mlp_width(layer: Any) -> int:
    """Return the width of a layer's MLP for one token: in a mixture of experts, of all experts that a token uses.

    Args:
        layer: its config.
    """
    dense = getattr(layer, "intermediate_size", None) or 0
    if not has_experts(layer):
        return dense
    expert_width = getattr(layer, "moe_intermediate_size", None) or dense
    shared = getattr(layer, "shared_expert_intermediate_size", None) or expert_width * (
        getattr(layer, "n_shared_experts", None) or 0
    )
    return expert_width * first_of(layer, CHOSEN) + shared


@dataclass(frozen=True)
class LogitTransform:
    """The function of the logits after the output embedding: they are scaled, then capped to (-cap, cap) by tanh.

    Args:
        cap: None = no cap.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """Return the transformed logits."""
        z = raw if self.scale == 1 else raw * self.scale
        if self.cap is None:
            return z
        return torch.tanh(z / self.cap) * self.cap

    def chain_(self, gradient: Tensor, raw: Tensor) -> None:
        """Turn the gradient of transformed logits into that of the raw ones, in place."""
        if self.cap is not None:
            gradient *= 1 - (self(raw.to(gradient.dtype)) / self.cap) ** 2
        if self.scale != 1:
            gradient *= self.scale


def logit_transform(config: Any) -> LogitTransform:
    """Return what a model does with its logits: Gemma caps them, Granite divides them, Cohere multiplies them."""
    text = config.get_text_config()
    scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
    return LogitTransform(scale, getattr(text, "final_logit_softcapping", None))
