"""Writes checkpoints atomically and only between iterations, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_rlvr.common.arguments import ChecksArguments, check_within
from lit_rlvr.common.files import flush_to_disk
from lit_rlvr.common.log import log
from lit_rlvr.common.paths import shown
from lit_rlvr.common.run_files import checkpoint_folder, list_checkpoints
from lit_rlvr.common.terminal import progress
from lit_rlvr.distributed.collectives import lost_peer
from lit_rlvr.distributed.fsdp2 import FSDP2
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.rollout.callback import rollout_of
from lit_rlvr.run.folder import FAILED_FOLDER, delete_backup, remove_folder
from lit_rlvr.run.loggers import callbacks_of, metrics_file
from lit_rlvr.run.monitor import is_own
from lit_rlvr.run.outputs import validate_now
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.validation_metrics import ValidationMetrics


def lacks_validation(trainer: Trainer) -> bool:
    """Return whether a resumed run has no results of the validation that follows its checkpoint's iteration."""
    metrics = metrics_file(trainer)
    fetcher = trainer.fit_loop._data_fetcher
    if metrics is None or fetcher is None or not trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher):
        return False
    return not any(name.startswith("val/") for name in metrics.rows.get(trainer.global_step, {}))


def validation_metrics(trainer: Trainer, module: LightningModule, data: Any) -> set[str] | None:
    """Return the names of the metrics that validation will measure; None if the module computes its own."""
    if type(module).on_validation_epoch_end is not RLVRModule.on_validation_epoch_end:
        return None
    rollout = rollout_of(trainer)
    names: set[str] = set()
    for dataset in data.validated:
        prompts = dataset.prompts["validation"]
        samples = rollout.samples_of(dataset.name)
        if prompts and samples and trainer.limit_val_batches:
            metrics = ValidationMetrics(samples, rollout.evaluation.greedy)
            for metric in metrics.names(prompts, rollout.eval_sampling.temperature > 0):
                names |= {f"val/{dataset.name}/{metric}", "val/accuracy"}
        if prompts and data.demonstrates:
            names |= {f"val/{dataset.name}/loss", "val/loss"}
    return names


def require_metric(option: str, name: str, names: Collection[str]) -> None:
    """Refuse the name of a metric that validation does not measure.

    Raises:
        UserError: no metric has this name.
    """
    if name not in names:
        if names:
            known = f"there are {', '.join(sorted(names))}"
        else:
            known = "there is no validation"
        raise UserError(f"{option}: no metric is called {name!r}; {known}")


class RunCheckpoint(ChecksArguments, Checkpoint):
    """The checkpoints of a run, `checkpoints/step-NNNNNN.ckpt`, and one more when training ends or stops.

    Sharded checkpoints are written in the background, one at a time. A checkpoint gets its name, and replaces an older
    one, only when it is complete.

    Args:
        every: iterations (rollouts) between checkpoints; 0 = only by time, and at the end.
        minutes: time between checkpoints, in addition to `every`, with one after the first iteration; 0 = not by time.
            It is counted from the end of the last save, and is at least 20 times the time that training waited for it.
        keep: number of newest checkpoints to keep on disk.
        best: validation metric, such as `val/accuracy` or `val/<set>/pass@8`; the checkpoint with its highest value is
            also kept, as `checkpoints/best.ckpt`.
    """

    config_key = "checkpoint"

    clock = staticmethod(time.monotonic)

    def __init__(self, every: int = 50, minutes: float = 5.0, keep: int = 1, best: str | None = None) -> None:
        check_within("[0, inf)", "checkpoint", every=every)
        check_within("[0, inf]", "checkpoint", minutes=minutes)
        check_within("[1, inf)", "checkpoint", keep=keep)
        self.every = every
        self.minutes = minutes
        self.keep = keep
        self.best = best
        self.enabled = True  # whether to write checkpoints at all
        self.best_value: float | None = None
        self._is_requested = False
        self._saved_step = -1
        self._saved_at = 0.0  # when the last save ended, or training began
        self._save_seconds = 0.0  # seconds that training waited for the last save
        self._path = Path()  # the last save's
        self._best_path = Path()  # the checkpoint to keep as `best.ckpt` once it is written
        self._names = threading.Lock()
        self._write_seconds: float | None = None  # from the beginning of a save until the checkpoint has its name

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.check_metrics(trainer, pl_module, trainer.datamodule)  # type: ignore[attr-defined]

    def check_metrics(self, trainer: Trainer, module: LightningModule, data: Any) -> None:
        """Refuse a `best`, and a metric that another callback monitors, that validation will not measure.

        Raises:
            UserError: no metric has this name.
        """
        names = validation_metrics(trainer, module, data)
        if names is None:
            return
        if self.best is not None:
            require_metric("checkpoint.best", self.best, names)
        if any(is_own(type(callback)) for callback in callbacks_of(trainer)):  # which may log anything
            return
        for callback in callbacks_of(trainer):
            name = getattr(callback, "monitor", None)
            if name not in (None, "step", "epoch") and ("/" not in name or name.startswith("val/")):
                require_metric(f"trainer.callbacks: {type(callback).__name__}.monitor", name, names)

    def request(self) -> None:
        """Save after this iteration, whatever the options say."""
        self._is_requested = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make up the validation in which the run was ended, since a checkpoint is saved before it."""
        if trainer.global_step and trainer.strategy.broadcast(lacks_validation(trainer)):
            validate_now(trainer)
        self._saved_at = self.clock()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self._is_saving(trainer):
            self.finish(trainer)
        iteration = pl_module.iteration
        due = self._is_requested or trainer.should_stop or (self.every and iteration % self.every == 0)
        seconds: dict[str, float] = {}
        if due or trainer.strategy.broadcast(not self._is_saving(trainer) and self._due_by_time(iteration)):
            self.save(trainer)
            seconds["time/checkpoint"] = self._save_seconds
        if self._is_requested:
            self._finish_everywhere(trainer)
        if self._write_seconds is not None and isinstance(trainer.strategy, FSDP2):
            seconds["time/checkpoint_write"] = self._write_seconds
            self._write_seconds = None
        for logger in trainer.loggers if seconds else ():  # `self.log` would repeat them in the steps after this one
            logger.log_metrics(seconds, step=trainer.global_step)

    @staticmethod
    def _is_saving(trainer: Trainer) -> bool:
        return isinstance(trainer.strategy, FSDP2) and trainer.strategy.is_saving

    def _due_by_time(self, iteration: int) -> bool:
        """Return whether this process's clock calls for a save; rank 0's answer decides."""
        if not self.enabled:
            return iteration == 1
        if not self.minutes:
            return False
        return iteration == 1 or self.clock() - self._saved_at >= max(60 * self.minutes, 20 * self._save_seconds)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)
        self._finish_everywhere(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best checkpoint; the state before training does not count."""
        if self.best is None or not self.enabled:
            return
        results: dict[str, float] = pl_module.validation.results  # type: ignore[assignment, union-attr]
        require_metric("checkpoint.best", self.best, results)
        if trainer.sanity_checking:
            return
        if self.best_value is None or results[self.best] > self.best_value:
            self.best_value = results[self.best]
            path = self.save(trainer)
            if trainer.is_global_zero:
                with self._names:
                    self._best_path = path.absolute()
                    if path.exists():
                        link(path, path.with_name("best.ckpt"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the sharded checkpoint in flight first, because that needs all processes."""
        if not isinstance(trainer.strategy, FSDP2) or isinstance(exception, KeyboardInterrupt) or lost_peer(exception):
            return
        if trainer.strategy.is_saving:
            log.warning("%s; the checkpoint in flight is written first", first_line(exception))
        try:
            trainer.strategy.finish_saving()
        except Exception as error:
            log.warning("the checkpoint in flight was not written: %s", first_line(error))

    def state_dict(self) -> dict[str, Any]:
        return {"best_value": self.best_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_value = state_dict["best_value"]

    def save(self, trainer: Trainer) -> Path:
        """Write a checkpoint of this step, unless it exists, and delete the oldest; return its path.

        A sharded checkpoint may still be in flight afterwards; see `finish`.

        Collective: call it on every rank.
        """
        folder = checkpoint_folder(trainer.default_root_dir)
        path = folder / f"step-{trainer.global_step:06d}.ckpt"
        if not self.enabled:
            if trainer.is_global_zero:
                delete_backup(trainer.default_root_dir)
            return path
        start = self.clock()
        is_there = self._is_saving(trainer) or path.exists()
        if trainer.strategy.broadcast(self._saved_step == trainer.global_step and is_there):
            return path
        progress.begin("saving a checkpoint")
        self.finish(trainer)
        self._path = path
        scratch = path.with_suffix(".tmp")
        with self._errors(trainer):
            folder.mkdir(parents=True, exist_ok=True)
            if trainer.is_global_zero:
                remove(scratch)
            trainer.strategy.barrier()
            written = partial(self._publish, path.absolute(), start)  # a reward may change the current directory
            if isinstance(trainer.strategy, FSDP2):
                trainer.save_checkpoint(scratch.absolute(), storage_options=written)
            else:
                trainer.save_checkpoint(scratch)
                if trainer.is_global_zero:
                    written()
        self._saved_step, self._saved_at = trainer.global_step, self.clock()
        self._save_seconds = self._saved_at - start
        return path

    def finish(self, trainer: Trainer) -> None:
        """Wait until this rank's part of the save in flight is done; rank 0's ends with the checkpoint's name.

        Raises:
            UserError: the checkpoint cannot be written.
        """
        if isinstance(trainer.strategy, FSDP2):
            with self._errors(trainer):
                trainer.strategy.finish_saving()

    def _finish_everywhere(self, trainer: Trainer) -> None:
        """Wait until the save in flight is done and its checkpoint has its name.

        Collective: call it on every rank.
        """
        self.finish(trainer)
        trainer.strategy.barrier()

    @contextmanager
    def _errors(self, trainer: Trainer) -> Iterator[None]:
        """Turn an `OSError` into one line that names the checkpoint."""
        try:
            yield
        except OSError as error:
            if trainer.is_global_zero:
                remove(self._path.with_suffix(".tmp"))
            raise UserError(
                f"checkpoint {shown(self._path)} cannot be written: {error.strerror or error}; free some space"
            ) from error

    def _publish(self, path: Path, start: float) -> None:
        """Give a finished checkpoint its name, then delete what it replaces. May run in another thread."""
        run = path.parents[1]
        with self._names:
            publish(path.with_suffix(".tmp"), path)
            if self._best_path == path:
                link(path, path.with_name("best.ckpt"))
        self._write_seconds = self.clock() - start
        delete_backup(run)
        remove_folder(run / FAILED_FOLDER)
        for old in [
            *list_checkpoints(run)[: -self.keep],
            *path.parent.glob("step-[0-9]*.tmp"),
            *path.parent.glob("step-[0-9]*.old"),
        ]:
            remove(old)


def publish(scratch: Path, path: Path) -> None:
    """Flush a finished checkpoint to disk, then move it to its final name; it replaces an earlier one."""
    for part in [*scratch.iterdir(), scratch] if scratch.is_dir() else [scratch]:
        flush_to_disk(part)
    old_folder = path.with_suffix(".old")
    if path.is_dir():  # unlike a file, a folder cannot be replaced atomically
        remove(old_folder)
        os.replace(path, old_folder)
    os.replace(scratch, path)
    flush_to_disk(path.parent)
    remove(old_folder)


def remove(path: Path) -> None:
    """Delete a checkpoint, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(path: Path, name: Path) -> None:
    """Give a checkpoint a second name, which may exist; copy it on file systems without hard links."""
    scratch = name.with_suffix(".tmp")
    remove(scratch)
    if path.is_dir():
        shutil.copytree(path, scratch, copy_function=_link_file)
    else:
        _link_file(path, scratch)
    publish(scratch, name)


def _link_file(path: str | Path, name: str | Path) -> None:
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)
