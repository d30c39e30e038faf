"""Replay: run algorithms on one frozen batch of numbers, without any model.

This is how an algorithm is checked against a paper or another framework: the same code as in training
(`algorithms/loss.py`, `objectives.py`), on arrays that anyone can write.
"""

from lit_rlvr.parity.command import load_algorithms, run, run_parity
from lit_rlvr.parity.replay import replay

__all__ = ["load_algorithms", "replay", "run", "run_parity"]
