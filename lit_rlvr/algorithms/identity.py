"""What a checkpoint must have in common with the run that goes on from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lit_rlvr.errors import UserError
from lit_rlvr.seeds import derive_seed

if TYPE_CHECKING:
    from lit_rlvr.algorithms.base import RLVRModule


def identity(module: RLVRModule) -> dict[str, Any]:
    """The classes of data, algorithm and advantage, and the model's architecture."""
    shapes = sorted((name, tuple(p.shape)) for name, p in module.policy.named_parameters())
    return {
        "data": type(module.trainer.datamodule).__name__,  # type: ignore[attr-defined]
        "algorithm": type(module).__name__,
        "advantage": type(module.advantage).__name__,
        "model of": f"{type(module.policy.model).__name__} {derive_seed(str(shapes)):x}",
    }


def check_identity(module: RLVRModule, checkpoint: dict[str, Any]) -> None:
    """Refuse a checkpoint of another kind of run.

    Raises:
        UserError: says what differs.
    """
    saved = checkpoint["rlvr"]
    for key, ours in identity(module).items():
        if saved[key] != ours:
            raise UserError(f"ckpt_path: its run had {key} {saved[key]}, this one has {ours}; resume with the same")
