"""torch.compile for the layers of the language model when they score completions; results change only by rounding.

Attention stays outside: its kernels are fused already, and the lengths in it differ in every micro-batch. What is left
depends on the number of tokens alone, so that no later micro-batch is compiled again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_rlvr.policy.vision import vision_tower


def compile_layers(model: nn.Module) -> None:
    """Compile each layer of the language model, in place, for rows with a shared prefix.

    Calls without segments, such as generation with a cache, run as before. Nothing is compiled before the first call.
    """
    tower = {id(module) for module in (vision_tower(model) or nn.Module()).modules()}
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and id(layer) not in tower:
            layer.forward = MethodType(_forward, layer)


def _forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    plain: Callable[..., Any] = type(layer).forward
    return (plain if kwargs.get("segments") is None else _compiled(plain))(layer, *args, **kwargs)


@functools.cache
def _compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
    """One compiled function for all layers of a kind."""
    return torch.compile(plain, dynamic=True)
