"""lit-rlvr: reinforcement learning with verifiable rewards on Lightning.

This module imports nothing heavy: reward workers import it, and they must start fast.
"""

__version__ = "0.1.0"

from lit_rlvr.compat import repair as _repair

_repair()
