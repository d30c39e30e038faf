"""Experiment trackers: what a run writes to its folder is also sent to W&B, MLflow, trackio and TensorBoard."""

from lit_rlvr.run.trackers.base import TrackedRun, Tracker
from lit_rlvr.run.trackers.feed import Trackers
from lit_rlvr.run.trackers.mlflow_tracker import MLflow
from lit_rlvr.run.trackers.tensorboard_tracker import TensorBoard
from lit_rlvr.run.trackers.trackio_tracker import Trackio
from lit_rlvr.run.trackers.wandb_tracker import Wandb

__all__ = ["MLflow", "TensorBoard", "TrackedRun", "Tracker", "Trackers", "Trackio", "Wandb"]
