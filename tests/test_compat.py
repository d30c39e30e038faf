"""Repairs apply to CUDA builds beside a CPU-only torch, and to nothing else."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

import lit_rlvr.compat as compat


def with_versions(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(compat, "version", version)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, compat._TorchvisionFinder)])
    modules = {k: v for k, v in sys.modules.items() if k not in ("torchaudio", "torchcodec", "torchvision")}
    monkeypatch.setattr(sys, "modules", modules)


def finders() -> int:
    return sum(isinstance(f, compat._TorchvisionFinder) for f in sys.meta_path)


def test_cuda_builds_beside_a_cpu_torch_are_treated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, {"torch": "2.13.0+cpu", "torchaudio": "2.13.0", "torchvision": "0.28.0"})
    assert compat.repair() == compat.repair() == ["torchvision", "torchaudio"]
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
    assert compat.repair() == []
    assert finders() == 0 and "torchaudio" not in sys.modules


def test_importing_the_package_is_light() -> None:
    """Reward workers import it: no torch, no transformers."""
    code = "import sys, lit_rlvr.rewards.worker; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_torchvision_imports_where_it_is_installed() -> None:
    """In a fresh process, as vLLM's own processes do."""
    code = (
        "import importlib.util as u\nif u.find_spec('torchvision'):\n    import torchvision.transforms\nprint('fine')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "fine", result.stderr
