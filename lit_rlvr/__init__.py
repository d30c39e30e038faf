"""lit-rlvr: reinforcement learning with verifiable rewards on Lightning.

This module imports nothing heavy: reward workers import it, and they must start fast.
"""

__version__ = "0.2.0"

import ast as _ast
import os as _os
import sys as _sys
from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import Any as _Any

_os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # see policy/speed.py; read at torch's first allocation
if "PYTORCH_ALLOC_CONF" not in _os.environ:  # else freed GPU memory is in pieces that a sleeping engine cannot use
    _os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

_MODULES: dict[str, str] = {}
for _node in _ast.parse(_Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body:
    if isinstance(_node, _ast.ImportFrom):
        for _name in _node.names:
            _MODULES[_name.name] = str(_node.module)
"""Public name -> its module, imported when the name is used; they stand in `__init__.pyi`, where tools see them too."""


def __getattr__(name: str) -> _Any:
    # Where jsonargparse looks for the shortest path to write, a class stays lit_rlvr.algorithms.GRPO in saved configs.
    if name not in _MODULES or _sys._getframe(1).f_code.co_name == "get_import_path":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*_MODULES, "__version__"})
