"""torch.compile for the layers of the language model when they score completions; results change only by rounding.

Attention stays outside: its kernels are fused already, and the lengths in it differ in every micro-batch. What is left
depends on the number of tokens alone, which is no reason to compile again; each new kind of call is one, such as
scoring without gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_rlvr.policy.vision import language_modules


def compile_layers(model: nn.Module) -> None:
    """Compile each layer of the language model, in place, for rows with a shared prefix.

    Calls without segments, such as generation with a cache, run as before. Nothing is compiled before the first call.
    """
    torch._dynamo.config.optimize_ddp = False  # it cuts layers at DDP's buckets, which are not used here
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)  # kinds of calls
    for layer in decoder_layers(model):
        layer.forward = MethodType(_forward, layer)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the language model, first to last."""
    return [module for _, module in language_modules(model) if isinstance(module, GradientCheckpointingLayer)]


def _forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    plain: Callable[..., Any] = type(layer).forward
    return (plain if kwargs.get("segments") is None else _compiled(plain))(layer, *args, **kwargs)


@functools.cache
def _compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
    """One compiled function for all layers of a kind."""
    return torch.compile(plain, dynamic=True)
