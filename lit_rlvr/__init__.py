"""lit-rlvr: reinforcement learning with verifiable rewards on Lightning.

This module imports nothing heavy: reward workers import it, and they must start fast.
"""

__version__ = "0.2.0"

import os as _os

_os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # see policy/speed.py; read at torch's first allocation
if "PYTORCH_ALLOC_CONF" not in _os.environ:  # else freed GPU memory is in pieces that a sleeping engine cannot use
    _os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
