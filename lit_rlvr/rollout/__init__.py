"""The first half of the loop: engines that generate, and the callback that turns prompts into scored groups."""

from lit_rlvr.rollout.callback import RolloutCallback
from lit_rlvr.rollout.engine import RolloutEngine
from lit_rlvr.rollout.hf import HFEngine
from lit_rlvr.rollout.transfer import FileTransfer, NCCLTransfer, WeightTransfer
from lit_rlvr.rollout.vllm import VLLMEngine
from lit_rlvr.rollout.vllm_server import VLLMServerEngine

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
