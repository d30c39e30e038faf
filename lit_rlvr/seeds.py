"""Derives every random choice from its purpose, never from the state of a generator.

A resumed run therefore draws the same numbers as an uninterrupted one: there is no generator state to save.
"""

from __future__ import annotations

import hashlib
import os


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**62) that depends only on `parts`.

    Args:
        parts: for example (run seed, "rollout", iteration, prompt id, sample index).

    The same parts give the same seed on every machine, process and Python version (no `hash`).
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def run_seed() -> int:
    """The run's seed, as set by `seed_everything`; 0 without it."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
