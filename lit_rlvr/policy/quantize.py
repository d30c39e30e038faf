"""Frozen 4-bit linear layers with bitsandbytes (NF4, with quantised scales).

Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlvr.packages import require


def quantize_layers(model: nn.Module, names: Sequence[str], compute_dtype: torch.dtype) -> None:
    """Replace linear layers with 4-bit ones, in place.

    Args:
        names: the layers' names in the model.
        compute_dtype: type of their matrix products.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    require("bitsandbytes", "model.lora.quantize")
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in names:
        linear: Any = model.get_submodule(name)
        device = linear.weight.device
        made: Any = Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, compute_dtype, quant_type="nf4",
            device="meta",
        )  # fmt: skip
        made.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        made.bias = linear.bias
        made.support_avx512bf16_for_cpu = False  # it would change the weights' layout when no gradient is needed
        model.set_submodule(name, made.to(device))  # moving it quantises it


def is_quantized(module: nn.Module) -> bool:
    return hasattr(getattr(module, "weight", None), "quant_state")


def dense(weight: Tensor) -> Tensor:
    """A weight, dequantised if it is quantised."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state)
