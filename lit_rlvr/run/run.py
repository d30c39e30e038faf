"""`Run`: one training run, the same from the command line and from Python."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar, Timer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.utilities import _log_hyperparams

from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.launch import is_first_process
from lit_rlvr.common.log import log
from lit_rlvr.common.run_files import list_checkpoints
from lit_rlvr.datamodules.reading.readers import GivenRows
from lit_rlvr.distributed.checkpoints import checkpoint_step, last_checkpoint
from lit_rlvr.errors import UserError
from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.run.advice import describe_earlier, keep_earlier
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.run.first_rollout import FirstRollout
from lit_rlvr.run.folder import CONFIG_HEADER, LOCK, claim_run_folder, clear_run_folder, ended_early, lock_run_folder
from lit_rlvr.run.live import LiveFile
from lit_rlvr.run.loggers import callbacks_of
from lit_rlvr.run.monitor import CollapseMonitor, LostWork
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.progress import Budget, ProgressEstimator, RunProgress
from lit_rlvr.run.ranks import RankSetUp
from lit_rlvr.run.stop import StopOnSignal
from lit_rlvr.run.trackers.feed import Trackers
from lit_rlvr.training.optimizer import steps_per_iteration, train_whole_rollouts

DEFAULT_FOLDER = "runs/default"
"""The run folder if `trainer.default_root_dir` is not set."""

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID")
"""Environment variables of launchers that may start a run again by the same command."""


@dataclass
class Run:
    """One training run: its folder, what it resumes from, its settings and its loggers.

    Args:
        folder: the run folder.
        checkpoint: the checkpoint that the run resumes from; None = it begins.
        overwrite: whether the run replaces the one in the folder.

    Attributes:
        settings: the resolved settings as YAML: the text of `config.yaml`.
        configs: the texts of the configs that it was given.
        given: the data that were given in Python, whose files the settings name.
        loggers: loggers that are opened when the run begins, so that a run which fails earlier leaves the folder
            unchanged.
    """

    folder: Path
    checkpoint: str | Path | None = None
    overwrite: bool = False
    settings: str = ""
    configs: list[str] = field(default_factory=list)
    given: list[GivenRows] = field(default_factory=list)
    loggers: list[Logger] = field(default_factory=list)

    @classmethod
    def find(cls, folder: Path, ckpt_path: str | Path | None, overwrite: bool, was_locked: bool = False) -> Run:
        """Return the run that `ckpt_path` and `overwrite` ask for; change nothing.

        `last` is the newest checkpoint; a run that ended before its first checkpoint starts over. Under a launcher that
        restarts runs by the same command, the first start has `last`, too.

        Args:
            folder: the run folder.
            ckpt_path: a checkpoint, `last`, or None to begin.
            overwrite: whether to replace the run in the folder.
            was_locked: there was a lock file in the folder before this process locked it.

        Raises:
            UserError: there is no checkpoint, and no run that ended early.
        """
        if ckpt_path != "last":
            return cls(folder, ckpt_path, overwrite)
        starts_over = ended_early(folder, was_locked)
        restarts = any(name in os.environ for name in LAUNCHERS)
        if starts_over or (restarts and not list_checkpoints(folder)):
            log.warning("ckpt_path: %s has no checkpoint yet, the run starts from the beginning", folder)
            return cls(folder, None, overwrite or starts_over)
        return cls(folder, str(last_checkpoint(folder)), overwrite)

    @classmethod
    @contextmanager
    def open(cls, folder: Path, ckpt_path: str | Path | None, overwrite: bool) -> Iterator[Run]:
        """Lock the folder for a run, and restore the earlier run if this one ends before its first checkpoint.

        Raises:
            UserError: the folder holds a run that is neither resumed nor overwritten, another run is using it, it
                cannot be written, or there is no checkpoint to resume from.
        """
        was_locked = (folder / LOCK).exists()
        is_owner = is_first_process()
        with ExitStack() as stack:
            if is_owner:
                stack.enter_context(lock_run_folder(folder.absolute()))  # a reward may change the current directory
            run = cls.find(folder, ckpt_path, overwrite, was_locked)
            run.folder = folder.absolute()
            if is_owner:
                stack.enter_context(claim_run_folder(run.folder, run.checkpoint is not None, run.overwrite))
            yield run


class RunStart(Callback):
    """The beginning of a run in its folder.

    It rounds `max_steps` up to whole rollouts, empties the run folder, opens loggers and trackers, and writes
    `config.yaml`. It empties the folder once, right before the first validation or iteration. A run that fails earlier
    leaves the folder unchanged, and so does a resumed run with nothing left to train.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._has_started = False
        self._logs_hyperparameters = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.loggers = self.run.loggers  # Lightning has opened its own loggers by now
        # Lightning would log hyperparameters, which opens the loggers, before it restores the checkpoint.
        self._logs_hyperparameters = trainer.enable_autolog_hparams
        trainer.enable_autolog_hparams = False
        if stage == "fit":
            if self.run.checkpoint is None:
                done = 0
            else:
                done = checkpoint_step(self.run.checkpoint)
            train_whole_rollouts(trainer, steps_per_iteration(pl_module), done)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_started:
            return
        self._has_started = True
        run = self.run
        tried = ""
        if trainer.is_global_zero and run.checkpoint is None:
            tried = describe_earlier(run.folder, run.settings, run.configs)  # before an earlier run is set aside
            clear_run_folder(run.folder, run.overwrite)
        elif trainer.is_global_zero:
            tried = keep_earlier(run.folder)
        for logger in run.loggers:
            if isinstance(logger, WandbLogger):  # it sees only those TensorBoard files that are opened after it
                _ = logger.experiment
        for trackers in (callback for callback in callbacks_of(trainer) if isinstance(callback, Trackers)):
            trackers.begin(trainer)
        if self._logs_hyperparameters:
            _log_hyperparams(trainer)
        if trainer.is_global_zero:
            for rows in run.given:
                rows.write()
            write_atomically(run.folder / "config.yaml", CONFIG_HEADER + tried + run.settings)
        trainer.strategy.barrier()  # no process writes to the folder before it is clear

    on_train_start = on_sanity_check_start

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new run even if it has no iterations."""
        if self.run.checkpoint is None:
            self.on_sanity_check_start(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self._has_started:
            trainer.loggers = []  # closing an unopened logger would open it


CONFIGURABLE: dict[str, type[Callback]] = {
    "run": RunFolder,
    "rollout": RolloutCallback,
    "budget": Budget,
    "checkpoint": RunCheckpoint,
    "collapse": CollapseMonitor,
}
"""Key of a config -> the callback of every run that it configures."""
FIXED: tuple[type[Callback], ...] = (
    StopOnSignal,
    RankSetUp,
    LostWork,
    ProgressEstimator,
    LiveFile,
    FirstRollout,
)
"""The callbacks of every run that have no options."""
CALLBACK_ORDER: tuple[type[Callback], ...] = (
    StopOnSignal,
    RunStart,  # before all that write files
    RankSetUp,
    ProgressEstimator,
    LiveFile,
    Callback,  # the user's own
    RunFolder,  # its clock covers the rollout
    Trackers,  # after the run folder, whose files they send, and before the work of the next iteration
    RolloutCallback,
    Budget,
    CollapseMonitor,
    FirstRollout,  # after the budget, which knows the length of the run
    LostWork,
    Timer,
    ProgressBar,
    Checkpoint,
)
"""The order of a run's callbacks; `Callback` stands for all that are not named."""


def in_order(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks in the order of a run's."""

    def place(callback: Callback) -> int:
        named = (k for k, kind in enumerate(CALLBACK_ORDER) if kind is not Callback and isinstance(callback, kind))
        return next(named, CALLBACK_ORDER.index(Callback))

    return sorted(callbacks, key=place)


def with_defaults(callbacks: Sequence[Callback], shows_progress: bool) -> list[Callback]:
    """Return the given callbacks, and those of every run that are not among them.

    Raises:
        UserError: two of them are of one kind of which a run has one.
    """
    for key, kind in CONFIGURABLE.items():
        count = sum(isinstance(instance, kind) for instance in callbacks)
        if count > 1:
            raise UserError(f"{key}: give one {kind.__name__} among the callbacks, not {count}")
    defaults = []
    for kind in (*CONFIGURABLE.values(), *FIXED):
        if not any(isinstance(instance, kind) for instance in callbacks):
            defaults.append(kind())
    if shows_progress and not any(isinstance(callback, ProgressBar) for callback in callbacks):
        defaults.append(RunProgress())
    return [*callbacks, *defaults]
