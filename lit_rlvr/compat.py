"""Repairs PyPI packages that do not work with a CPU-only torch, only where needed.

PyPI's torchaudio, torchcodec and torchvision are CUDA builds. With a CPU-only torch the first two fail when
transformers tries to import them, and torchvision fails on two operators that its C++ part could not define. `repair()`
runs when `lit_rlvr` is imported. A start-up file installed next to the package (see hatch_build.py) imports it in every
program of the environment, because vLLM inspects models in separate processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

_KEEP: list[object] = []  # torch.library definitions live as long as their object


class _TorchvisionFinder(MetaPathFinder):
    """Declares torchvision's missing operators just before its first import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_torchvision_operators()
        return None


def _declare_torchvision_operators() -> None:
    """Define the schemas of `nms` and `qnms`, so that torchvision's fake kernels register; vision processors never call
    them."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEEP.append(library)


def _misfits() -> list[str]:
    """Installed CUDA builds of torch's companion packages, if torch is CPU-only."""
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
    """Hide torchaudio and torchcodec, prepare torchvision; returns the packages treated.

    Cheap (reads package versions; torch is imported only when torchvision is) and idempotent.
    """
    misfits = _misfits()
    for name in misfits:
        if name == "torchvision":
            if name not in sys.modules and not any(isinstance(f, _TorchvisionFinder) for f in sys.meta_path):
                sys.meta_path.insert(0, _TorchvisionFinder())
        elif name not in sys.modules:
            sys.modules[name] = None  # type: ignore[assignment]  # find_spec and import both say "not installed"
    return misfits
