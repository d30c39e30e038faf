"""lit-rlvr: reinforcement learning with verifiable rewards on Lightning.

This module imports nothing heavy: reward workers import it, and they must start fast.
"""

__version__ = "0.2.0"

import os as _os

from lit_rlvr.packages import repair as _repair

_os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # see policy/speed.py; read at torch's first allocation
_repair()
