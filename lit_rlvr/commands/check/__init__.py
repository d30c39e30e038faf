"""`lit-rlvr check`: measure whether an algorithm or an advantage has the properties that training relies on, and how
often a reward misjudges rewritten answers.

Of an algorithm, it runs the code of training on a synthetic batch of numbers, as `lit_rlvr/commands/parity/` does. It
loads no model.
"""

from lit_rlvr.commands.check.command import run
from lit_rlvr.commands.check.properties import Finding, check_advantage, check_algorithm, made_batch

__all__ = ["Finding", "check_advantage", "check_algorithm", "made_batch", "run"]
