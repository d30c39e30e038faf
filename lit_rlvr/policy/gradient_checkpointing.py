"""Layers that are computed again in the backward pass: less memory, a third more time, the same results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_rlvr.errors import UserError


def enable_checkpointing(model: Any) -> None:
    """Recompute each layer in the backward pass instead of keeping what is in it; see `checkpointing`.

    Raises:
        UserError: the model has no layers that can.
    """
    if not any(isinstance(layer, GradientCheckpointingLayer) for layer in model.modules()):
        raise UserError(f"model.gradient_checkpointing: {type(model).__name__} does not support it; leave it off")
    model.gradient_checkpointing_enable({"use_reentrant": False})


@contextmanager
def checkpointing(model: nn.Module) -> Iterator[None]:
    """Let checkpointed layers do so in here, where a gradient is wanted.

    transformers ties it to training mode, which would also switch dropout on: only the layers' own flag is set, and
    only meanwhile, because a checkpointed layer refuses the cache that generation needs.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    chosen = [layer for layer in layers if torch.is_grad_enabled() and not layer.training]
    for layer in chosen:
        layer.training = True
    try:
        yield
    finally:
        for layer in chosen:
            layer.training = False
