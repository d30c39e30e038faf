"""Engines that generate completions, and their choice by name."""

from __future__ import annotations

from lit_rlvr.common.packages import find_part, is_installed, require, vllm_package
from lit_rlvr.engines.base import RolloutEngine
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.vllm import VLLMEngine

ENGINES = ("auto", "hf", "vllm")
"""The names of our engines."""


def resolve_engine(engine: RolloutEngine | str) -> RolloutEngine:
    """Return the engine of a name: `auto`, `hf`, `vllm`, or one that an installed package registers.

    An engine is returned unchanged. `auto` is vLLM if it is installed, else the Hugging Face engine.

    Raises:
        UserError: the name is not known, or vLLM is not installed.
    """
    if not isinstance(engine, str):
        return engine
    if engine == "hf" or (engine == "auto" and not is_installed("vllm")):
        return HFEngine()
    if engine not in ENGINES:
        part: RolloutEngine = find_part("rollout.engine", "engines", engine, ENGINES, RolloutEngine)()
        return part
    require("vllm", "rollout.engine", vllm_package())
    return VLLMEngine()
