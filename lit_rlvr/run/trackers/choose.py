"""The trackers that the option `trackers` names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lit_rlvr.errors import UserError
from lit_rlvr.packages import require
from lit_rlvr.run.trackers.base import Tracker
from lit_rlvr.run.trackers.mlflow_tracker import MLflow
from lit_rlvr.run.trackers.tensorboard_tracker import TensorBoard
from lit_rlvr.run.trackers.trackio_tracker import Trackio
from lit_rlvr.run.trackers.wandb_tracker import Wandb

Name = Literal["wandb", "mlflow", "trackio", "tensorboard"]
Chosen = list[Tracker | Name] | Tracker | Name | None
"""What the option takes: names and class_paths, one or several."""

NAMES: dict[str, type[Tracker]] = {cls.key: cls for cls in (Wandb, MLflow, Trackio, TensorBoard)}


def choose_trackers(chosen: Chosen, board: bool) -> list[Tracker]:
    """Build the trackers.

    Args:
        board: whether the run writes to TensorBoard, which then needs no naming.

    Raises:
        UserError: one is given twice or has a wrong option, or its package is not installed.
    """
    given: Sequence[Tracker | str] = [] if chosen is None else chosen if isinstance(chosen, list) else [chosen]
    found = [NAMES[one]() if isinstance(one, str) else one for one in given]
    if board and not any(isinstance(tracker, TensorBoard) for tracker in found):
        found.append(TensorBoard())
    keys = [tracker.key for tracker in found]
    for tracker in found:
        if keys.count(tracker.key) > 1:
            raise UserError(f"trackers: {tracker.key} is given twice")
        if tracker.samples_every < 0:
            every = tracker.samples_every
            raise UserError(f"trackers: {tracker.key}: samples_every: {every} is negative; use 0 for never")
        if tracker.module:
            require(tracker.module, "trackers", *tracker.packages)
    return found
