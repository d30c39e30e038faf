"""Tiny models for every test, and the folder of a run: a plugin that `conftest.py` loads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny import byte_tokenizer, save_model, tiny_llama, tiny_qwen2
from tiny_runs import tiny_config, write_config
from tiny_vlms import FAST, KINDS, QWEN
from transformers import PreTrainedTokenizerFast

from lit_rlvr.engines.process_group import VLLMProcessGroup
from lit_rlvr.policy.families.qwen_vl import save_tiny_vlm

torch.set_num_threads(1)


@pytest.fixture
def fake_world() -> Iterator[None]:
    """A default process group of one that sends nothing. It ends without those of an engine that the session keeps."""
    world = VLLMProcessGroup(first=1 << 30)
    with world.inside():
        dist.init_process_group("fake", rank=0, world_size=1, store=dist.HashStore())
        yield
    with world.ending():
        pass


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with a chat template; <|im_end|> ends a turn."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with tied embeddings as a Hugging Face folder."""
    return save_model(tiny_llama(), tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2.5-VL as a Hugging Face folder."""
    return save_tiny_vlm(tmp_path_factory.mktemp("models") / "tiny-vlm", seed=3)


@pytest.fixture(
    scope="session",
    params=[pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in QWEN],
)
def qwen_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each of Qwen's kinds as a Hugging Face folder."""
    return QWEN[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(
    scope="session",
    params=[pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in KINDS],
)
def any_vlm_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each supported kind of vision-language model as a Hugging Face folder."""
    return KINDS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="session")
def untied_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 with an output embedding of its own as a Hugging Face folder."""
    return save_model(tiny_qwen2(), tmp_path_factory.mktemp("models") / "tiny-qwen2")


@pytest.fixture
def run_folder(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: holds `tiny.yaml`, whose run goes to `run/`."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.yaml", tiny_config(tiny_model_folder))
    return tmp_path
