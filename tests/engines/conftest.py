"""Real vLLM for each kind of vision-language model, started once."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_vlms import FAST, NOT_IN_VLLM
from transformers import AutoTokenizer

from lit_rlvr.engines.base import EngineContext
from lit_rlvr.engines.vllm import VLLMEngine
from lit_rlvr.policy.loading import load_policy

SLOW = ("gemma4", "qwen3-vl")
"""Kinds that `make test-slow` starts engines for, beside the fast ones. `make test-exhaustive` starts the others."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make the cases of other kinds exhaustive."""
    for item in items:
        here = isinstance(item, pytest.Function) and item.path.parent == Path(__file__).parent
        if here and hasattr(item, "callspec"):
            kind = item.callspec.params.get("any_vlm_folder", FAST[0])
            if kind not in (*FAST, *SLOW):
                item.add_marker("exhaustive")


@pytest.fixture(scope="session")
def vlm_context(any_vlm_folder: Path) -> EngineContext:
    """The context of an engine for a vision-language model: up to two images per prompt, and two observed ones."""
    folder = str(any_vlm_folder)
    return EngineContext(folder, load_policy(folder), AutoTokenizer.from_pretrained(folder), 384, 64, 0, max_images=4)


@pytest.fixture(scope="session")
def in_vllm(any_vlm_folder: Path) -> None:
    """Skips kinds for which vLLM has no kernels on a CPU."""
    if importlib.util.find_spec("vllm") is None or any_vlm_folder.name in NOT_IN_VLLM:
        pytest.skip("vLLM is not installed, or has no kernels for this model on a CPU")


@pytest.fixture(scope="session")
def vlm_engine(in_vllm: None, vlm_context: EngineContext) -> Iterator[VLLMEngine]:
    """An engine whose weights are noise until the first sync."""
    engine = VLLMEngine(enforce_eager=True)
    engine.start(vlm_context)
    yield engine
    engine.close()
