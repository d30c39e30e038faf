"""Seeds of random choices, derived from their purpose instead of the state of a generator.

So a resumed run draws the same numbers as an uninterrupted one, without a generator state to save.
"""

from __future__ import annotations

import hashlib
import os


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**62) that depends only on `parts`.

    The same parts give the same seed on every machine, process and Python version (no `hash`).

    Args:
        parts: for example (run seed, "rollout", iteration, prompt id, sample index).
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def run_seed() -> int:
    """Return the run's seed, which `seed_everything` sets; 0 without it."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
