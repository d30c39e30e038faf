"""Experiment trackers: what a run writes to its folder is also sent to W&B, MLflow and trackio."""

from lit_rlvr.run.trackers.base import TrackedRun, Tracker
from lit_rlvr.run.trackers.feed import Trackers
from lit_rlvr.run.trackers.services import MLflow, Trackio, Wandb

__all__ = ["MLflow", "TrackedRun", "Tracker", "Trackers", "Trackio", "Wandb"]
