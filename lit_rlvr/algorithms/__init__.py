"""One LightningModule per algorithm; each file is one loss."""

from lit_rlvr.algorithms.base import RLVRModule
from lit_rlvr.algorithms.grpo import GRPO

__all__ = ["GRPO", "RLVRModule"]
