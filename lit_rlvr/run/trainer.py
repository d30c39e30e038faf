"""Lightning's Trainer for runs: its callbacks, its defaults, and `fit` with the run folder locked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger

from lit_rlvr.common.arguments import ChecksArguments, given_text
from lit_rlvr.common.init_arguments import arguments_of, settings_of
from lit_rlvr.common.launch import is_first_process
from lit_rlvr.common.log import log
from lit_rlvr.common.seeds import run_seed
from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.reading.readers import GivenRows
from lit_rlvr.distributed.checkpoints import CheckpointFiles
from lit_rlvr.distributed.fsdp2 import prepare_groups
from lit_rlvr.errors import UserError
from lit_rlvr.policy.precision import auto_precision, compute_dtype
from lit_rlvr.rollout.callback import RolloutCallback, rollout_of
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.run.loggers import callback_of, open_loggers
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.parts import RunParts
from lit_rlvr.run.rank_zero import show_messages, silence_other_packages
from lit_rlvr.run.run import CONFIGURABLE, DEFAULT_FOLDER, Run, RunStart, in_order, with_defaults
from lit_rlvr.run.warm_start import WarmStart, accuracy_before
from lit_rlvr.sizing.auto import choose_compute
from lit_rlvr.training.module import RLVRModule


class Trainer(ChecksArguments, lightning.pytorch.Trainer):
    """Lightning's Trainer for runs, with everything that `lit-rlvr fit` adds.

    It prints a line per step and writes metrics, completions, checkpoints, curves, the summary and `config.yaml` to the
    run folder, which is `default_root_dir`. Ctrl-C and SIGTERM end `fit` with `RunStopped` after the iteration, with
    everything saved.

    Args:
        default_root_dir: the run folder; default: runs/default.
        callbacks: the `RolloutCallback`, and further callbacks; a `RunFolder`, `RunCheckpoint`, `CollapseMonitor` or
            `Budget` with options replaces the default one.
        accelerator: the kind of device.
        precision: `32-true`; `bf16-mixed`: products and the vectors between layers in bfloat16, as vLLM has them, and
            weights, gradients, AdamW, softmax and loss in float32. The weights begin at random places within their last
            digit of bfloat16, so that rounding passes on short steps. `auto`: bf16-mixed if the hardware multiplies
            bfloat16, else 32-true. `bf16-true` is refused: weights of 16 bits lose small updates.
        logger: further loggers of Lightning; False = `metrics.csv` alone, without TensorBoard.
        enable_checkpointing: save checkpoints; without them the run cannot be resumed.
        enable_progress_bar: show what the run is doing, in one line that changes.
        num_sanity_val_steps: validation batches before training; -1 = all.
        log_every_n_steps: how often metrics are logged.
        max_epochs: stop after this many epochs; -1 = no limit.
        enable_model_summary: print Lightning's table of the layers.
        options: options of Lightning's Trainer, without those for when to validate, which the `RolloutCallback` has.

    Attributes:
        warm_start: the supervised steps before the run; none by default.
    """

    config_key = "trainer"

    def __init__(
        self,
        *,
        default_root_dir: str | Path | None = None,
        callbacks: list[Callback] | Callback | None = None,
        accelerator: str | Accelerator = "auto",
        precision: str | int | None = None,
        logger: Logger | Iterable[Logger] | bool | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        num_sanity_val_steps: int | None = -1,
        log_every_n_steps: int | None = 1,
        max_epochs: int | None = -1,
        enable_model_summary: bool | None = False,
        **options: Any,
    ) -> None:
        silence_other_packages()
        show_messages()
        if precision == "auto":
            precision = auto_precision(accelerator)
        check_trainer_options(options)
        if isinstance(callbacks, Callback):
            listed = [callbacks]
        else:
            listed = list(callbacks or [])
        if not any(isinstance(callback, RolloutCallback) for callback in listed):
            log.warning(
                "callbacks: there is no RolloutCallback, so completions are sampled and rewarded by its defaults; give "
                "RolloutCallback(rewards=[...], ...)"
            )
        all_callbacks = with_defaults(listed, shows_progress=enable_progress_bar is not False)
        every = next(
            callback.validate_every_rollouts for callback in all_callbacks if isinstance(callback, RolloutCallback)
        )
        super().__init__(
            default_root_dir=default_root_dir or DEFAULT_FOLDER,
            callbacks=all_callbacks,
            val_check_interval=every,  # a batch of Lightning's is a rollout
            check_val_every_n_epoch=1 if every is None else None,
            accelerator=accelerator,
            precision=precision,  # type: ignore[arg-type]
            logger=False,  # a run opens its own
            enable_checkpointing=True,
            enable_progress_bar=enable_progress_bar,
            num_sanity_val_steps=num_sanity_val_steps,
            log_every_n_steps=log_every_n_steps,
            max_epochs=max_epochs,
            enable_model_summary=enable_model_summary,
            **options,
        )
        if self.overfit_batches:  # type: ignore[attr-defined]
            raise UserError(
                "trainer.overfit_batches: it has no effect on prompts; train on a small `train` file instead"
            )
        self.run: Run | None = None  # opened by the command line before it builds the model; None = `fit` opens one
        self.warm_start = WarmStart()
        self._chosen_logger = logger
        self._options = {"accelerator": accelerator, "precision": precision} | options
        self.callbacks: list[Callback] = in_order(self.callbacks)
        callback_of(self, RunCheckpoint).enabled &= enable_checkpointing is not False
        self.strategy.checkpoint_io = CheckpointFiles()
        prepare_groups(self.strategy)

    def fit(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        overwrite: bool = False,
    ) -> None:
        """Train.

        Args:
            model: the algorithm.
            train_dataloaders: the data, as Lightning lets one give them in second place.
            val_dataloaders: None; the data have their own validation sets.
            datamodule: the data.
            ckpt_path: resume from this checkpoint, or from the folder's `last`; with `last`, a run that ended before
                its first checkpoint starts over.
            weights_only: how the checkpoint is unpickled, as in Lightning's `fit`.
            overwrite: replace the run in the folder, if there is one.

        Raises:
            UserError: the folder holds a run that is neither resumed nor overwritten, or another run is using it.
        """
        if self.run is not None:
            self._train(self.run, model, datamodule, weights_only)
            return
        if datamodule is None and val_dataloaders is None:  # Lightning takes a data module in either place
            datamodule = train_dataloaders
        check_parts(model, datamodule)
        with Run.open(Path(self.default_root_dir), ckpt_path, overwrite) as run:
            choose_compute(self, model, datamodule)
            run.given = _with_files(datamodule, run.folder)
            run.settings = self._settings(model, datamodule)
            self._train(run, model, datamodule, weights_only)

    def _train(self, run: Run, model: Any, datamodule: Any, weights_only: bool | None) -> None:
        """Train a run, whose folder is locked and whose settings are known."""
        RunParts(self, model, datamodule, self.warm_start).prepare()
        rollout_of(self).open_rewards(self, None if run.checkpoint is None else run.folder)
        validates = self.limit_val_batches and not model.demonstrates
        if self.warm_start.steps and validates and run.checkpoint is None and is_first_process():
            accuracy = accuracy_before(model.model_folder, datamodule, rollout_of(self), self.strategy.root_device)
            callback_of(self, RunFolder).note_warm_start(accuracy)
        self.make_warm_start(model, datamodule)
        run.loggers = open_loggers(self._chosen_logger, run.folder, run.checkpoint)
        others = (callback for callback in self.callbacks if not isinstance(callback, RunStart))
        self.callbacks = in_order([*others, RunStart(run)])
        super().fit(model, datamodule=datamodule, ckpt_path=run.checkpoint, weights_only=weights_only)

    def make_warm_start(self, model: RLVRModule, data: PromptDataModule) -> None:
        """Let the algorithm start from the warm-started model, if the run has a warm start."""
        rollout = rollout_of(self)
        dtype = compute_dtype(str(self.precision))
        self.warm_start.apply(model, data, rollout.environment, rollout.sampling, dtype, self.strategy.root_device)

    def _settings(self, model: Any, datamodule: Any) -> str:
        """Return the settings as a config of `lit-rlvr fit`, without loggers and the user's own callbacks."""
        groups = {}
        for key, kind in CONFIGURABLE.items():
            for callback in self.callbacks:
                if isinstance(callback, kind):
                    groups[key] = settings_of(arguments_of(callback))
        options = {}
        for name, value in self._options.items():
            if value is not None:
                options[name] = settings_of(value)
        settings = {
            "seed_everything": run_seed(),
            "model": settings_of(model),
            "data": settings_of(datamodule),
            **groups,
            "warm_start": settings_of(arguments_of(self.warm_start)),
            "trainer": options | {"default_root_dir": str(self.default_root_dir)},
        }
        return yaml.safe_dump(settings, sort_keys=False)


def check_parts(model: Any, data: Any) -> None:
    """Refuse anything but an algorithm and a data module.

    Raises:
        UserError: says what was given instead.
    """
    for key, part, kind, remedy in (
        ("model", model, RLVRModule, "an algorithm, such as GRPO()"),
        (
            "data",
            data,
            PromptDataModule,
            'a data module, such as TextMath(train=[{"question": "1+1?", "answer": "2"}])',
        ),
    ):
        if part is None:
            raise UserError(f"{key}: missing; give {remedy}")
        if not isinstance(part, kind):
            raise UserError(f"{key}: give {remedy}, not {given_text(part)}")


def _with_files(data: PromptDataModule, folder: Path) -> list[GivenRows]:
    """Name the files of the run for the rows that were given in Python; return these rows."""
    named = {}
    for dataset in data.validated:
        for split, rows in dataset.given.items():
            named[f"{dataset.name}_{split}"] = rows
    for name, rows in named.items():
        rows.file = str(folder / "rows" / f"{name}.jsonl")
    return [*named.values()]


REPLACEMENTS = {
    "gradient_clip_val": (None, "model.init_args.optim.max_grad_norm"),
    "gradient_clip_algorithm": (None, "model.init_args.optim.max_grad_norm"),
    "accumulate_grad_batches": (
        1,
        "model.init_args.compute.tokens_per_microbatch (memory) or data.init_args.prompts_per_rollout",
    ),
}
"""Trainer options that manual optimization refuses -> their defaults, and our options for the same purpose."""


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Refuse options of Lightning's Trainer that have another name here.

    Raises:
        UserError: names the option.
    """
    for option, (default, replacement) in REPLACEMENTS.items():
        if options.get(option, default) not in (None, default):
            raise UserError(f"trainer.{option}: the algorithm does this itself; use {replacement}")
