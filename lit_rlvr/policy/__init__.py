"""The trained model: loading it, laying out its inputs, scoring tokens, and checking the result."""

from lit_rlvr.policy.load_policy import load_policy
from lit_rlvr.policy.policy import Policy

__all__ = ["Policy", "load_policy"]
