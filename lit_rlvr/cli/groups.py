"""The option groups of a config besides model, data and trainer."""

from lightning.pytorch import Callback

from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.run.monitor import CollapseStop
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.progress import Budget
from lit_rlvr.warm_start import WarmStart

CALLBACKS: dict[str, type[Callback]] = {
    "run": RunFolder,  # first: its clock covers the rollout
    "rollout": RolloutCallback,
    "budget": Budget,
    "checkpoint": RunCheckpoint,
    "collapse": CollapseStop,
}
"""Option group -> the callback that it configures."""

GROUPS: dict[str, type] = CALLBACKS | {"warm_start": WarmStart}
"""Option group -> the class that it configures; null stands for the defaults of the whole group."""
