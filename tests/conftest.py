"""The command line for every test, and an environment without a hub or spinning threads."""

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

import pytest
from forked import forks  # noqa: F401

atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=["cpu", "cuda"], default="cpu", help="where numerical tests run; on cuda no others are run"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Load the models where tests run (the process that hands them out to workers would import torch for nothing), and
    let hypothesis watch no clock: other work may keep all cores busy. Tests on a GPU machine do without hypothesis."""
    if config.pluginmanager.hasplugin("hypothesispytest"):
        from hypothesis import HealthCheck, settings

        settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("busy")
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tiny_models")


LONG = (
    "test_docs.py",
    "test_learning.py",
    "test_vllm_server.py",
    "test_two_processes.py",
    "test_sharded_checkpoints.py",
    "test_wheel.py",
    "test_tutorials.py",
    "test_made_up_device.py",
)
"""Files that take minutes. They come first: at the end one worker would wait for them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Make all cases but the first of a test with the mark `first_case_fast` slow; with `--device cuda`, run only tests
    that use the `device` fixture."""
    first: dict[str, str] = {}
    for item in items:
        if (
            item.get_closest_marker("first_case_fast")
            and first.setdefault(item.nodeid.split("[")[0], item.name) != item.name
        ):
            item.add_marker("slow")
    items.sort(key=lambda item: item.path.name not in LONG)
    if config.getoption("--device") == "cpu":
        return
    others = [item for item in items if "device" not in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of later garbage collections, of which each takes half a second with it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let Python free it at its end: libraries complain about what stays."""
    gc.unfreeze()


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Any:
    """Where a numerical test computes, a `torch.device`."""
    import torch

    return torch.device(request.config.getoption("--device"))


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

    @property
    def refusal(self) -> str:
        """The one line that says why the command is refused."""
        assert self.status == 2 and "Traceback" not in self.err + self.out, self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("lit-rlvr: error: ")]
        return line


@pytest.fixture
def lit_rlvr(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """`lit_rlvr("fit", "--config", ...)` as from a shell; everything it sets is put back afterwards.

    It checks the exit status, if one is given, and what its errors must contain; a refusal (2) has no traceback.
    """
    from lit_rlvr.cli.main import run

    environment, path = dict(os.environ), list(sys.path)

    def call(*arguments: Any, status: int | None = None, says: str = "") -> Result:
        capsys.readouterr()
        with warnings.catch_warnings():
            found = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert status in (None, found) and says in err, f"{found}: {err}"
        assert status != 2 or "Traceback" not in err, err
        return Result(found, out, err)

    yield call
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
