"""Tiny models and the command line for every test, and an environment without a hub or spinning threads."""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import platform
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch loads
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are faster on one thread
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")  # read when trackio loads, which TRL does too
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import forks  # noqa: F401
from tiny import byte_tokenizer, save_model, tiny_llama, tiny_qwen2
from tiny_runs import tiny_config, write_config
from tiny_vlms import FAST, KINDS, QWEN
from transformers import PreTrainedTokenizerFast

from lit_rlvr.engines.process_group import VLLMProcessGroup
from lit_rlvr.policy.families.qwen_vl import save_tiny_vlm

torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=["cpu", "cuda"], default="cpu", help="where numerical tests run; on cuda no others are run"
    )


LONG = (
    "test_docs.py", "test_learning.py", "test_vllm_server.py", "test_two_processes.py", "test_sharded_checkpoints.py",
    "test_wheel.py", "test_tutorials.py", "test_made_up_device.py",
)  # fmt: skip
"""Files that take minutes. They come first: at the end one worker would wait for them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test with the mark `rest_slow`, all cases but the first are slow. With `--device cuda`, only tests that use
    the `device` fixture are run."""
    first: dict[str, str] = {}
    for item in items:
        if item.get_closest_marker("rest_slow") and first.setdefault(item.nodeid.split("[")[0], item.name) != item.name:
            item.add_marker("slow")
    items.sort(key=lambda item: item.path.name not in LONG)
    if config.getoption("--device") == "cpu":
        return
    others = [item for item in items if "device" not in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a numerical test computes."""
    return torch.device(request.config.getoption("--device"))


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
def environment() -> Iterator[None]:
    """Puts back the variables that `seed_everything` and the trainer leave behind."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def freed_memory() -> Iterator[None]:
    """What a file's tests have freed goes back to the system: runs of the other worker need it."""
    yield
    if platform.libc_ver()[0] == "glibc":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process draw no `curves.png`, a third of their time, but in tests marked `pictures`."""
    if "pictures" not in request.keywords:
        monkeypatch.setattr("lit_rlvr.run.outputs.plot_run", lambda *_: None)


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """Puts back what a command does to our log; pytest listens to one that does not propagate in a way of its own."""
    ours = logging.getLogger("lit_rlvr")
    level, before = ours.level, list(ours.handlers)
    yield
    ours.propagate = True
    ours.setLevel(level)
    for handler in set(ours.handlers) - set(before):
        if type(handler) is logging.StreamHandler:
            ours.removeHandler(handler)


@dataclass
class Result:
    """A command's exit status and output."""

    status: int
    out: str
    err: str


@pytest.fixture
def run_folder(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: holds `tiny.yaml`, whose run goes to `run/`."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.yaml", tiny_config(tiny_model_folder))
    return tmp_path


@pytest.fixture
def lit_rlvr(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """`lit_rlvr("fit", "--config", ...)` as from a shell; everything it sets is put back afterwards."""
    from lit_rlvr.cli.main import run

    environment, path = dict(os.environ), list(sys.path)

    def call(*arguments: Any) -> Result:
        capsys.readouterr()
        with warnings.catch_warnings():
            status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    yield call
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
