"""Lightning's Trainer for runs from Python, with everything that `lit-rlvr fit` adds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.utilities import _log_hyperparams

from lit_rlvr.distributed.checkpoints import CheckpointFiles, last_checkpoint
from lit_rlvr.distributed.collectives import is_first_process
from lit_rlvr.distributed.strategy import prepare_groups
from lit_rlvr.errors import UserError
from lit_rlvr.files import write_atomically
from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.run.folder import CONFIG_HEADER, LOCK, claim_run_folder, clear_run_folder, ended_early, lock_run_folder
from lit_rlvr.run.live import LiveFile
from lit_rlvr.run.loggers import open_loggers
from lit_rlvr.run.monitor import CollapseStop, LostWork, MonitoredMetrics
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.progress import RunProgress
from lit_rlvr.run.rank_zero import show_messages, silence_other_packages
from lit_rlvr.run.ranks import EndOfSetUp, RankWatch
from lit_rlvr.run.stop import StopOnSignal
from lit_rlvr.run.trackers.callback import Trackers

_log = logging.getLogger("lit_rlvr")


class RunStart(Callback):
    """Empties the run folder, opens loggers and trackers, and writes `config.yaml`.

    It does so once, right before the first validation or iteration. A run that fails earlier leaves the folder
    unchanged, and so does a resumed run with nothing left to train.

    Args:
        settings: the resolved settings as YAML; None = the run has no `config.yaml`.
        loggers: the run's loggers, which Lightning would open at set-up: give the trainer none.
        trackers: the run's trackers, if it has any.
        resumes: whether the run continues the one in the folder.
        overwrite: whether the run replaces the one in the folder.
    """

    def __init__(
        self, settings: str | None, loggers: Sequence[Logger], trackers: Trackers | None, resumes: bool, overwrite: bool
    ) -> None:
        self.settings, self.loggers, self.trackers = settings, list(loggers), trackers
        self.resumes, self.overwrite = resumes, overwrite
        self._has_started = False
        self._logs_hyperparameters = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.loggers = self.loggers  # Lightning has opened its own loggers by now
        # Lightning would log hyperparameters, which opens the loggers, before it restores the checkpoint.
        self._logs_hyperparameters, trainer.enable_autolog_hparams = trainer.enable_autolog_hparams, False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_started:
            return
        self._has_started = True
        root = Path(trainer.default_root_dir)
        if trainer.is_global_zero and not self.resumes:
            clear_run_folder(root, self.overwrite)
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):  # it sees only those TensorBoard files that are opened after it
                _ = logger.experiment
        if self.trackers is not None:
            self.trackers.begin(trainer)
        if self._logs_hyperparameters:
            _log_hyperparams(trainer)
        if trainer.is_global_zero and self.settings is not None:
            write_atomically(root / "config.yaml", CONFIG_HEADER + self.settings)
        trainer.strategy.barrier()  # no process writes to the folder before it is clear

    on_train_start = on_sanity_check_start

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new run even if it has no iterations."""
        if not self.resumes:
            self.on_sanity_check_start(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self._has_started:
            trainer.loggers = []  # closing an unopened logger would open it


TRAINER_DEFAULTS: dict[str, Any] = {
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 1,
    "max_epochs": -1,
    "enable_model_summary": False,
}
"""Options of Lightning's Trainer for which a run has other defaults."""
RUN_CALLBACKS: tuple[type[Callback], ...] = (RunFolder, RolloutCallback, RunCheckpoint, CollapseStop)
"""The configurable callbacks of every run, in their order: the run folder's clock includes the rollout."""

RUN_START_INDEX = 2
"""Position of `RunStart` among the callbacks: before all that write files, and after the signal handler."""


NAMES_OF_PYTHON = {
    "trainer.default_root_dir": "folder",
    "--ckpt_path last": 'ckpt_path="last"',
    "--overwrite true": "overwrite=True",
}
"""Option of the command line -> argument of `RunTrainer`."""


@contextmanager
def _names_of_python() -> Iterator[None]:
    """Let errors name the arguments of `RunTrainer` rather than options of the command line."""
    try:
        yield
    except UserError as error:
        messages = list(error.messages)
        for option, argument in NAMES_OF_PYTHON.items():
            messages = [message.replace(option, argument) for message in messages]
        raise UserError(*messages) from error


class RunTrainer(Trainer):
    """Lightning's Trainer for a run from Python, with everything that `lit-rlvr fit` adds.

    It prints a line per step and writes metrics, completions, checkpoints, curves and the summary to a run folder, as
    the command line does, except `config.yaml`. Ctrl-C and SIGTERM end `fit` with `RunStopped` after the iteration,
    with everything saved.

    Args:
        folder: the run folder.
        rollout: samples and scores the completions.
        callbacks: further callbacks; a `RunFolder`, `RunCheckpoint` or `CollapseStop` with options replaces the default
            one.
        logger: further loggers of Lightning; False = `metrics.csv` alone, without TensorBoard.
        overwrite: replace the run in the folder, if there is one.
        options: options of Lightning's Trainer.
    """

    def __init__(
        self,
        folder: str | Path,
        rollout: RolloutCallback,
        callbacks: Sequence[Callback] = (),
        logger: Any = None,
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        silence_other_packages()
        show_messages()
        given: list[Callback] = [rollout, *callbacks]
        parts = [
            next((callback for callback in given if isinstance(callback, kind)), None) or kind()
            for kind in RUN_CALLBACKS
        ]
        others = [callback for callback in callbacks if not isinstance(callback, RUN_CALLBACKS)]
        super().__init__(
            default_root_dir=folder, callbacks=[*parts, *others], logger=False, **TRAINER_DEFAULTS | options
        )
        add_run_callbacks(self)
        self.chosen_logger, self.overwrite = logger, overwrite

    def fit(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train with the run folder locked.

        Args:
            ckpt_path: resume from this checkpoint, or from the folder's `last`; with `last`, a run that ended before
                its first checkpoint starts over.

        Raises:
            UserError: the folder holds a run that is neither resumed nor overwritten, or another run is using it.
        """
        root, is_owner = Path(self.default_root_dir), is_first_process()
        was_locked = (root / LOCK).exists()
        with _names_of_python(), ExitStack() as stack:
            if is_owner:
                stack.enter_context(lock_run_folder(root))
            starts_over = ckpt_path == "last" and ended_early(root, was_locked)
            if starts_over:
                _log.warning("ckpt_path: %s has no checkpoint yet, the run starts from the beginning", root)
                path = None
            else:
                path = last_checkpoint(root) if ckpt_path == "last" else ckpt_path
            overwrite = self.overwrite or starts_over
            loggers = open_loggers(self.chosen_logger, root, path)
            if is_owner:
                stack.enter_context(claim_run_folder(root, path is not None, overwrite))
            run_start = RunStart(None, loggers, None, path is not None, overwrite)
            callbacks: list[Callback] = self.callbacks  # type: ignore[attr-defined]
            callbacks[:] = [callback for callback in callbacks if not isinstance(callback, RunStart)]
            callbacks.insert(RUN_START_INDEX, run_start)
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, path, weights_only)


def add_run_callbacks(trainer: Trainer) -> None:
    """Add the callbacks that have no options, the reader of sharded checkpoints, and what process groups need."""
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        raise UserError("trainer.overfit_batches: it has no effect on prompts; train on a small `train` file instead")
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:0] = [RankWatch(), StopOnSignal(), EndOfSetUp(), MonitoredMetrics(), LostWork(), LiveFile()]
    trainer.strategy.checkpoint_io = CheckpointFiles()
    prepare_groups(trainer.strategy)
    bar = trainer.progress_bar_callback
    if bar is not None:
        callbacks[callbacks.index(bar)] = RunProgress()
