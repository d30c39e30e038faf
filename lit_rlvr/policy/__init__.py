"""The model that is trained: what loads it, lays out its rows, scores their tokens, and checks itself."""

from lit_rlvr.policy.load_policy import load_policy
from lit_rlvr.policy.policy import Policy

__all__ = ["Policy", "load_policy"]
