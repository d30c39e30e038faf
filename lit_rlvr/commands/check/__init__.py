"""`lit-rlvr check` and `lit-rlvr parity`: the numbers of algorithms, advantages and rewards, without a model.

`check` measures whether an algorithm or an advantage has the properties that training relies on, and how often a reward
misjudges rewritten answers. `parity` replays algorithms on a frozen batch, to compare them with a paper or another
framework. Both run the code of training (`training/loss.py`, `objectives.py`) on arrays.
"""

from lit_rlvr.commands.check.command import run_command
from lit_rlvr.commands.check.losses import Finding, check_advantage, check_algorithm, made_batch

__all__ = ["Finding", "check_advantage", "check_algorithm", "made_batch", "run_command"]
