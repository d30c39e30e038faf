"""Fused GPU kernels from liger-kernel; results change only by rounding."""

from __future__ import annotations

import torch
from torch import nn

from lit_rlvr.errors import UserError
from lit_rlvr.packages import require


def use_liger(model: nn.Module) -> None:
    """Replace normalisation, rotary embedding and MLP with liger-kernel's fused kernels, in place.

    Raises:
        UserError: there is no GPU, liger-kernel is not installed, or does not support the model.
    """
    if not torch.cuda.is_available():
        raise UserError("model.liger: its kernels run on a GPU only; leave it off")
    require("liger_kernel", "model.liger", "liger-kernel")
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    try:  # our scoring never calls the losses that it would fuse
        _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.liger: {type(model).__name__} is not supported: {error}") from error
