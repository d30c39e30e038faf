"""The trackers that the option `trackers` names."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec

from lit_rlvr.errors import UserError
from lit_rlvr.run.trackers.base import Tracker
from lit_rlvr.run.trackers.mlflow_tracker import MLflow
from lit_rlvr.run.trackers.tensorboard_tracker import TensorBoard
from lit_rlvr.run.trackers.trackio_tracker import Trackio
from lit_rlvr.run.trackers.wandb_tracker import Wandb

Chosen = list[Tracker | str] | Tracker | str | None
"""What the option takes: names, class_paths, one of them or several."""

NAMES: dict[str, type[Tracker]] = {cls.key: cls for cls in (Wandb, MLflow, Trackio, TensorBoard)}


def choose_trackers(chosen: Chosen, board: bool) -> list[Tracker]:
    """Build the trackers.

    Args:
        board: whether the run writes to TensorBoard, which then needs no naming.

    Raises:
        UserError: a name is unknown or given twice, or a package is not installed.
    """
    given: Sequence[Tracker | str] = [] if chosen is None else chosen if isinstance(chosen, list) else [chosen]
    found = [_named(one) if isinstance(one, str) else one for one in given]
    if board and not any(isinstance(tracker, TensorBoard) for tracker in found):
        found.append(TensorBoard())
    keys = [tracker.key for tracker in found]
    for tracker in found:
        if keys.count(tracker.key) > 1:
            raise UserError(f"trackers: {tracker.key} is given twice")
        if tracker.module and find_spec(tracker.module) is None:
            raise UserError(
                f"trackers: {tracker.module} is not installed; pip install 'lit-rlvr[{tracker.key}]'"
            )
    return found


def _named(name: str) -> Tracker:
    if name not in NAMES:
        near = get_close_matches(name, NAMES, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"trackers: there is no {name!r}; {hint}known are {', '.join(NAMES)}, or a class_path")
    return NAMES[name]()
