"""Counts a model's sizes on the meta device, without loading weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_rlvr.policy.adapters import Lora, add_adapters, language_layers
from lit_rlvr.policy.loading import outline
from lit_rlvr.policy.vision import freeze_vision_tower, takes_images, vision_tower


@dataclass(frozen=True)
class Layers:
    """A stack of equal transformer layers.

    Args:
        count: number of layers.
        width: H, width of the hidden state.
        inner: width of the MLP.
        heads, keys: total width of the query heads, and of the key heads.
    """

    count: int
    width: int
    inner: int
    heads: int
    keys: int


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Args:
        parameters: number of all parameters, with tied ones counted once.
        trained: number of parameters in the optimizer.
        largest: parameters of the largest layer.
        outside: parameters outside layers, such as the embeddings.
        text, tower: the language model's layers, and the vision tower's if it is trained.
        patches: image patches per prompt token.
        vocabulary: V.
        quantized: number of parameters in 4 bits.
    """

    parameters: int
    trained: int
    largest: int
    outside: int
    text: Layers
    tower: Layers | None
    patches: int
    vocabulary: int
    quantized: int = 0


def shape_of(config: Any, freeze_vision: bool = False, lora: Lora | None = None) -> Shape:
    """Count a model by its config.

    Args:
        config: a transformers config.
        freeze_vision, lora: see the options of the same names.
    """
    model = outline(config, torch.float32)
    if freeze_vision:
        freeze_vision_tower(model)
    quantized = 0
    if lora is not None:
        if lora.quantize != "none":
            quantized = sum(model.get_submodule(name).weight.numel() for name in language_layers(model))
        add_adapters(model, replace(lora, quantize="none"))
    layers = [_size(module) for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    tower = vision_tower(model)
    seen = tower is not None and any(p.requires_grad for p in tower.parameters())
    return Shape(
        parameters=_size(model),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        largest=max(layers, default=0),
        outside=_size(model) - sum(layers),
        text=_text_layers(config.get_text_config()),
        tower=_tower_layers(config.vision_config) if seen else None,
        patches=config.vision_config.spatial_merge_size**2 if takes_images(config) else 0,
        vocabulary=config.get_text_config().vocab_size,
        quantized=quantized,
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _text_layers(text: Any) -> Layers:
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Layers(
        text.num_hidden_layers,
        text.hidden_size,
        text.intermediate_size,
        text.num_attention_heads * head,
        text.num_key_value_heads * head,
    )


def _tower_layers(vision: Any) -> Layers:
    """Return the layers of Qwen's vision towers; Qwen2-VL names its sizes differently from later models."""
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    inner = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
    return Layers(vision.depth, width, inner, width, width)
