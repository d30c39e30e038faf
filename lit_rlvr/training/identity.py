"""The identity of a run: a checkpoint resumes only in a run with the same."""

from __future__ import annotations

from typing import Any

from lit_rlvr.errors import UserError
from lit_rlvr.policy.policy import Policy
from lit_rlvr.seeds import derive_seed


def identity(data: object, algorithm: object, advantage: object, policy: Policy) -> dict[str, str]:
    """Return the classes of data, algorithm and advantage, and a hash of the model's architecture."""
    shapes = sorted((name, tuple(p.shape)) for name, p in policy.named_parameters())
    return {
        "data": type(data).__name__,
        "algorithm": type(algorithm).__name__,
        "advantage": type(advantage).__name__,
        "model of": f"{type(policy.model).__name__} {derive_seed(str(shapes)):x}",
    }


def check_identity(ours: dict[str, str], saved: dict[str, Any]) -> None:
    """Refuse a checkpoint of a different kind of run.

    Args:
        saved: contains what `identity` returned when the checkpoint was written.

    Raises:
        UserError: names what differs.
    """
    for key, value in ours.items():
        if saved[key] != value:
            raise UserError(f"ckpt_path: its run had {key} {saved[key]}, this one has {value}; resume with the same")
