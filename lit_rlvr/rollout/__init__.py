"""The first half of the loop: engines that generate, and the callback that turns prompts into scored groups."""

from lit_rlvr.engines.base import InPlaceEngine, RolloutEngine
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.server import VLLMServerEngine
from lit_rlvr.engines.transfer import FileTransfer, NCCLTransfer, WeightTransfer
from lit_rlvr.engines.vllm import VLLMEngine
from lit_rlvr.rollout.callback import RolloutCallback

__all__ = [
    "FileTransfer",
    "HFEngine",
    "InPlaceEngine",
    "NCCLTransfer",
    "RolloutCallback",
    "RolloutEngine",
    "VLLMEngine",
    "VLLMServerEngine",
    "WeightTransfer",
]
