"""The rewrites of the check-up of a reward: pure functions of a gold answer, each of which keeps or breaks its meaning.

A rewrite names the kinds of answers for which it certainly does so, and returns None where it does not apply.
"""

from lit_rlvr.commands.check.rewrites import around, items, numbers, programs, texts  # each registers its own
from lit_rlvr.commands.check.rewrites.registry import PROGRAMS, REWRITES, Rewrite

__all__ = ["PROGRAMS", "REWRITES", "Rewrite", "around", "items", "numbers", "programs", "texts"]
