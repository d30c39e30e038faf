"""The option groups besides model, data and trainer; each belongs to a callback."""

from lightning.pytorch import Callback

from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.run.monitor import CollapseStop
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.progress import Budget

CALLBACKS: dict[str, type[Callback]] = {
    "run": RunFolder,  # first: its clock covers the rollout
    "rollout": RolloutCallback,
    "budget": Budget,
    "checkpoint": RunCheckpoint,
    "collapse": CollapseStop,
}
"""Option group -> its callback."""
