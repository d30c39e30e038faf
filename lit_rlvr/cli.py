"""`lit-rlvr fit`, `validate`, `preview`, `filter` and `plan`: LightningCLI with our groups of options."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

import datamodules  # noqa: F401  # makes short class names known
import lit_rlvr.algorithms
import lit_rlvr.rewards.choice
import lit_rlvr.rewards.code
import lit_rlvr.rewards.format
import lit_rlvr.rewards.length
import lit_rlvr.rewards.open_answer
import lit_rlvr.rewards.sql  # noqa: F401
from datamodules import PromptDataModule
from lit_rlvr.algorithms import RLVRModule
from lit_rlvr.configs import changed_classes, find_configs
from lit_rlvr.errors import UserError
from lit_rlvr.nulls import refuse_nulls
from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.run.budget import Budget
from lit_rlvr.run.checkpoint import (
    CheckpointFiles,
    RunCheckpoint,
    checkpoint_step,
    last_checkpoint,
    list_checkpoints,
    remove,
)
from lit_rlvr.run.collapse import CollapseStop
from lit_rlvr.run.folder import RunFolder
from lit_rlvr.run.logger import MetricsFile
from lit_rlvr.run.progress import RunProgress
from lit_rlvr.run.ranks import RankWatch
from lit_rlvr.run.stop import StopOnSignal
from lit_rlvr.run.thumbnails import list_thumbnails
from lit_rlvr.run.trainer import RLVRTrainer
from lit_rlvr.warm_start import WarmStart

_log = logging.getLogger("lit_rlvr")

INSTEAD = {
    "gradient_clip_val": "model.max_grad_norm",
    "accumulate_grad_batches": "model.tokens_per_microbatch (memory) or data.prompts_per_step",
}
"""Trainer options that manual optimization refuses -> ours."""


CALLBACKS: dict[str, type[Callback]] = {
    "run": RunFolder,  # first: its clock covers the rollout
    "rollout": RolloutCallback,
    "budget": Budget,
    "checkpoint": RunCheckpoint,
    "collapse": CollapseStop,
}
"""Group of options -> the callback that takes them."""

ANYWHERE = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")
"""Lets a trainer for GPUs be built on a machine without any."""


class ConfigFile(SaveConfigCallback):
    """Leaves the resolved settings of `fit` as `config.yaml` in the run folder."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        root = Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        settings = self.config.clone()  # as they would be given again: neither a resume nor an overwrite
        settings.overwrite, settings.ckpt_path = False, None
        self.parser.save(settings, root / "config.yaml", skip_none=False, overwrite=True, multifile=False)


class RLVRCLI(LightningCLI):
    """`lit-rlvr fit | validate | ...`."""

    def __init__(self, args: Sequence[str]) -> None:
        self._arguments = list(args)
        quiet = {"exit_on_error": False}
        super().__init__(
            RLVRModule,
            PromptDataModule,
            trainer_class=RLVRTrainer,
            save_config_callback=ConfigFile,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={
                "num_sanity_val_steps": -1,
                "log_every_n_steps": 1,
                "max_epochs": -1,
                "enable_model_summary": False,
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_kwargs={**quiet, **{command: {**quiet} for command in self.subcommands()}},
            args=self._arguments,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
                "validate": {"model", "dataloaders", "datamodule"},
                "preview": {"model", "datamodule"}, "filter": {"model", "datamodule"},
                "plan": {"model", "datamodule"}}  # fmt: skip

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for key, cls in CALLBACKS.items():
            parser.add_lightning_class_args(cls, key)
        parser.add_class_arguments(WarmStart, "warm_start")
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Train into a run folder that already holds a run."
        )
        parser.set_defaults({"seed_everything": 0})

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Settings come from the command line and its configs alone, never from a checkpoint."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        refuse_nulls(config, CALLBACKS | {"warm_start": WarmStart})
        root = Path(config.trainer.default_root_dir or "runs/default")
        config.trainer.default_root_dir = str(root)
        if config.get("ckpt_path") == "last":
            self._find_last(config, root)
        for option, ours in INSTEAD.items():
            if config.trainer.get(option) not in (None, 1):
                raise UserError(f"trainer.{option}: the algorithm does this itself; use {ours}")
        strategy = str(getattr(config.trainer.strategy, "class_path", config.trainer.strategy))
        if strategy.startswith("fsdp") or strategy.endswith("FSDPStrategy"):
            raise UserError(
                "trainer.strategy: FSDP1 fails on backward passes inside a training step, clips no norm and runs on no "
                "CPU; use FSDP2 instead: --config configs/strategy/fsdp2.yaml"
            )
        if config.get("ckpt_path"):
            step = checkpoint_step(config.ckpt_path)
            if self.subcommand == "fit" and 0 < config.trainer.max_steps <= step:
                _log.warning("ckpt_path: the run is at step %d, trainer.max_steps is reached: nothing to train", step)
        if self.subcommand == "fit" and _get_rank() in (None, 0):
            _check_run_folder(root, bool(config.get("ckpt_path")), config.overwrite)
        for line in changed_classes(self._arguments, config):
            _log.warning("%s", line)

    def _find_last(self, config: Any, root: Path) -> None:
        """Make `--ckpt_path last` a file; a run that ended before its first checkpoint goes on from its beginning."""
        if self.subcommand == "fit" and (root / "config.yaml").is_file() and not list_checkpoints(root):
            _log.warning("ckpt_path: %s has no checkpoint yet, the run goes on from its beginning", root)
            config.ckpt_path, config.overwrite = None, True
        else:
            config.ckpt_path = str(last_checkpoint(root))

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        if self.subcommand not in ("preview", "plan"):
            self.config_init[self.subcommand].warm_start.apply(self.model, self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand]
        loggers = self._fit_loggers(config) if self.subcommand == "fit" else False
        try:
            trainer = super().instantiate_trainer(logger=loggers, **kwargs)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"trainer: {str(error).splitlines()[0]}") from error
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:0] = [RankWatch(), StopOnSignal()]
        trainer.strategy.checkpoint_io = CheckpointFiles()
        bar = trainer.progress_bar_callback
        if bar is not None:
            callbacks[callbacks.index(bar)] = RunProgress()
        return trainer

    @staticmethod
    def _fit_loggers(config: Any) -> list[Any]:
        """The configured loggers (TensorBoard by default), and always metrics.csv."""
        root = Path(config.trainer.default_root_dir)
        metrics = MetricsFile(root / "metrics.csv")
        if config.ckpt_path:
            metrics.resume(checkpoint_step(config.ckpt_path))
        chosen = config.trainer.logger
        if chosen in (None, True):
            chosen = TensorBoardLogger(root, name="tensorboard", version="")
        return [*(chosen if isinstance(chosen, list) else [chosen] if chosen else []), metrics]


def _check_run_folder(root: Path, resumes: bool, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless it is resumed or overwritten; check that it can be written.

    Raises:
        UserError: the folder is taken, or cannot be written.
    """
    traces = [root / name for name in ("summary.json", "metrics.csv", "checkpoints")]
    taken = [path for path in traces if path.exists()]
    if taken and not resumes and not overwrite:
        raise UserError(
            f"trainer.default_root_dir: {root} already holds a run ({taken[0].name}); resume it with --ckpt_path last, "
            "replace it with --overwrite true, or choose another folder"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".write-test"
        probe.write_text("x" * 4096)
        probe.unlink()
    except OSError as error:
        raise UserError(f"trainer.default_root_dir: {root} cannot be written: {error.strerror}") from error
    if overwrite and not resumes:
        _clear(root)


def _clear(root: Path) -> None:
    """Remove what an earlier run left; nothing that is not ours."""
    for pattern in ("checkpoints/*.ckpt", "tensorboard/events.out.tfevents.*", "rollouts/step-*.json",
                    "skipped/step-*.json"):  # fmt: skip
        for path in root.glob(pattern):
            remove(path)
    for path in list_thumbnails(root):
        path.unlink()
    for name in ("summary.json", "metrics.csv", "completions.jsonl", "curves.png", "failed_rewards.jsonl"):
        (root / name).unlink(missing_ok=True)


def run(command: str, arguments: list[str]) -> None:
    """`lit-rlvr fit ...` and the other commands that take a config."""
    RLVRCLI([command, *find_configs(arguments), *(ANYWHERE if command == "plan" else ())])
