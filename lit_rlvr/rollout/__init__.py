"""The first half of the loop: engines that generate, and the callback that turns prompts into scored groups."""

from lit_rlvr.rollout.callback import RolloutCallback
from lit_rlvr.rollout.engines.base import RolloutEngine
from lit_rlvr.rollout.engines.hf import HFEngine
from lit_rlvr.rollout.engines.server import VLLMServerEngine
from lit_rlvr.rollout.engines.transfer import FileTransfer, NCCLTransfer, WeightTransfer
from lit_rlvr.rollout.engines.vllm import VLLMEngine

__all__ = [
    "FileTransfer",
    "HFEngine",
    "NCCLTransfer",
    "RolloutCallback",
    "RolloutEngine",
    "VLLMEngine",
    "VLLMServerEngine",
    "WeightTransfer",
]
