"""`lit-rlvr parity`: replays algorithms on one frozen batch of numbers, without a model.

Use it to check an algorithm against a paper or another framework: it runs the same code as training
(`training/loss.py`, `objectives.py`) on arrays that anyone can write.
"""

from lit_rlvr.commands.parity.command import load_algorithms, run, run_parity
from lit_rlvr.commands.parity.replay import replay

__all__ = ["load_algorithms", "replay", "run", "run_parity"]
