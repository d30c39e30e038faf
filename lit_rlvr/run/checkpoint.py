"""Checkpoints at whole iterations, written atomically, so that a resumed run is the uninterrupted one."""

from __future__ import annotations

import logging
import os
import re
import shutil
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from lit_rlvr.errors import UserError, in_one_line
from lit_rlvr.run.shards import MOMENTS, REST, WEIGHTS, is_sharded, numbered, read_whole

PARTS = ("rlvr", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step", "epoch")
"""What a checkpoint of ours holds, among others."""

_log = logging.getLogger("lit_rlvr")


class RunCheckpoint(Checkpoint):
    """Saves `checkpoints/step-NNNNNN.ckpt` in the run folder, and always one when training ends or is stopped.

    Args:
        every: iterations (rollouts) between checkpoints; 0 = only at the end.
        keep: newest checkpoints that stay on disk.
        best: validation metric, such as `val/accuracy` or `val/<set>/pass@8`; the checkpoint with its highest value
            stays as `checkpoints/best.ckpt` too.
    """

    def __init__(self, every: int = 50, keep: int = 1, best: str | None = None) -> None:
        if every < 0 or keep < 1:
            raise UserError(f"checkpoint: every={every} must be >= 0 and keep={keep} >= 1")
        self.every, self.keep, self.best = every, keep, best
        self.best_value: float | None = None
        self.wanted = False  # whether to save after this iteration whatever `every` says
        self._saved_step = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = self.every and getattr(pl_module, "iteration", 0) % self.every == 0
        if due or self.wanted or trainer.should_stop:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best; the state before training is not one of them."""
        if self.best is None or trainer.sanity_checking:
            return
        results: dict[str, float] = pl_module.validation_results  # type: ignore[assignment]
        if self.best not in results:
            raise UserError(
                f"checkpoint.best: no metric is called {self.best!r}; there are {', '.join(sorted(results))}"
            )
        if self.best_value is None or results[self.best] > self.best_value:
            self.best_value = results[self.best]
            path = self.save(trainer)
            if trainer.is_global_zero:
                link(path, path.with_name("best.ckpt"))

    def state_dict(self) -> dict[str, Any]:
        return {"best_value": self.best_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_value = state_dict["best_value"]

    def save(self, trainer: Trainer) -> Path:
        """Write a checkpoint of now, unless there is one already, and drop the oldest ones; all processes together."""
        folder = checkpoint_folder(trainer.default_root_dir)
        path = folder / f"step-{trainer.global_step:06d}.ckpt"
        if trainer.strategy.broadcast(self._saved_step == trainer.global_step and path.exists()):
            return path
        scratch = path.with_suffix(".tmp")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if trainer.is_global_zero:
                remove(scratch)
            trainer.strategy.barrier()
            trainer.save_checkpoint(scratch)
            if trainer.is_global_zero:
                publish(scratch, path)
                for old in [*list_checkpoints(trainer.default_root_dir)[: -self.keep], *folder.glob("*.tmp")]:
                    remove(old)
        except OSError as error:
            if trainer.is_global_zero:
                remove(scratch)
            raise UserError(
                f"checkpoint {path} cannot be written: {error.strerror or error}; free some space"
            ) from error
        self._saved_step = trainer.global_step
        return path


class CheckpointFiles(TorchCheckpointIO):
    """Lets strategies that keep whole weights on every process go on from sharded checkpoints too."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = read_checkpoint(path)
        if is_sharded(Path(path)):
            moments = read_whole(Path(path), MOMENTS)
            checkpoint["optimizer_states"] = [numbered(checkpoint["optimizer_states"][0], moments)]
        return checkpoint


def publish(scratch: Path, path: Path) -> None:
    """Give a finished checkpoint its name, in place of one that had it before; from then on it is on the disk."""
    for part in scratch.iterdir() if scratch.is_dir() else [scratch]:
        with part.open("rb") as file:
            os.fsync(file.fileno())
    aside = path.with_suffix(".old")
    if path.is_dir():  # which, other than a file, cannot be replaced in one go
        remove(aside)
        os.replace(path, aside)
    os.replace(scratch, path)
    remove(aside)


def remove(path: Path) -> None:
    """Delete a checkpoint, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(path: Path, name: Path) -> None:
    """Give a checkpoint a second name, in place of what had it before; where files have one name only, a copy."""
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


def checkpoint_folder(run: str | Path) -> Path:
    return Path(run) / "checkpoints"


def list_checkpoints(run: str | Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    found = [p for p in checkpoint_folder(run).glob("step-*.ckpt") if re.fullmatch(r"step-\d+\.ckpt", p.name)]
    return sorted(found, key=lambda p: int(p.stem.removeprefix("step-")))


def last_checkpoint(run: str | Path) -> Path:
    """A run's newest checkpoint that can be read; newer ones that cannot are named.

    Raises:
        UserError: there is none.
    """
    problem = f"{checkpoint_folder(run)} has no checkpoint (step-*.ckpt); run `lit-rlvr fit` into {run} first"
    for path in reversed(list_checkpoints(run)):
        try:
            read_rest(path)
        except UserError as error:
            problem = str(error)
            _log.warning("%s: passed over", problem)
        else:
            return path
    raise UserError(problem)


def read_rest(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ours, its tensors left on disk: until they are used, or where they are in a folder's shares.

    Raises:
        UserError: it is missing, torn, or not one of ours.
    """
    path = Path(path)
    file = path / REST if is_sharded(path) else path
    try:
        broken = _broken_part(str(file), os.stat(file).st_mtime_ns)
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a reader of damaged files comes upon
        raise UserError(f"{path} is not a readable checkpoint ({in_one_line(error)})") from error
    if broken is not None:
        raise UserError(f"{path} is damaged: {broken} is not what was written")
    wanted = PARTS if is_sharded(path) else (*PARTS, WEIGHTS)
    if not isinstance(found, dict) or any(part not in found for part in wanted):
        raise UserError(f"{path} is not a checkpoint of lit-rlvr")
    return found


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ours with the weights as `state_dict`; errors as `read_rest`."""
    found = read_rest(path)
    return found | {WEIGHTS: read_whole(Path(path), WEIGHTS)} if is_sharded(Path(path)) else found


@lru_cache(maxsize=8)
def _broken_part(path: str, changed: int) -> str | None:
    """The first part of a file whose checksum is wrong: torch does not look."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def checkpoint_step(path: str | Path) -> int:
    """The optimizer step of a checkpoint; errors as `read_rest`."""
    return int(read_rest(path)["global_step"])
