"""Engines that generate completions, and their choice by name."""

from __future__ import annotations

from importlib import import_module

from lit_rlvr.common.packages import is_installed, require, vllm_package
from lit_rlvr.engines.base import RolloutEngine
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.vllm import VLLMEngine
from lit_rlvr.errors import UserError


def resolve_engine(engine: RolloutEngine | str) -> RolloutEngine:
    """Return the engine named `auto`, `hf` or `vllm`; an engine is returned as it is.

    `auto` is vLLM if it is installed, else the Hugging Face engine.

    Raises:
        UserError: the name is not known, or vLLM is not installed.
    """
    if not isinstance(engine, str):
        return engine
    if engine == "hf" or (engine == "auto" and not is_installed("vllm")):
        return HFEngine()
    if "." in engine:
        module, _, name = engine.rpartition(".")
        try:
            getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"rollout.engine: {engine!r} cannot be imported ({error})") from error
    if engine not in ("auto", "vllm"):
        raise UserError(f"rollout.engine: {engine!r} is not known; use auto, hf, vllm, or a class_path")
    require("vllm", "rollout.engine", vllm_package())
    return VLLMEngine()
