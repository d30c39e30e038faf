"""Begins a run: nothing in the run folder changes before the model is loaded and the checkpoint restored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.utilities import _log_hyperparams

from lit_rlvr.files import write_atomically
from lit_rlvr.run.claim import CONFIG_HEADER, clear
from lit_rlvr.run.trackers.callback import Trackers


class RunBegins(Callback):
    """Makes room in the run folder, opens loggers and trackers, and writes `config.yaml`.

    This happens once, right before the first validation or iteration. A run that is refused earlier, or that has
    nothing left to train, leaves the folder as it was.

    Args:
        settings: the resolved settings as YAML; None = the run has no `config.yaml`.
        loggers: the run's loggers, which Lightning would open at set-up: give the trainer none.
        trackers: the run's trackers, if it has any.
        resumes: whether the run continues the one in the folder.
        overwrite: whether it replaces that one.
    """

    def __init__(
        self, settings: str | None, loggers: Sequence[Logger], trackers: Trackers | None, resumes: bool, overwrite: bool
    ) -> None:
        self.settings, self.loggers, self.trackers = settings, list(loggers), trackers
        self.resumes, self.overwrite = resumes, overwrite
        self._begun = False
        self._logs_hyperparameters = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.loggers = self.loggers  # Lightning has just opened those that it had
        # Lightning would open them before it restores the checkpoint.
        self._logs_hyperparameters, trainer.enable_autolog_hparams = trainer.enable_autolog_hparams, False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._begun:
            return
        self._begun = True
        root = Path(trainer.default_root_dir)
        if trainer.is_global_zero and not self.resumes:
            clear(root, self.overwrite)
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
        """Begin a new run that has no iterations at all."""
        if not self.resumes:
            self.on_sanity_check_start(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self._begun:
            trainer.loggers = []  # closing an unopened logger would open it
