"""Finds and reads a run's checkpoints, whole or sharded."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from lit_rlvr.distributed.shards import MOMENTS, REST, WEIGHTS, is_sharded, numbered, read_whole
from lit_rlvr.errors import UserError, first_line

PARTS = ("rlvr", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step", "epoch")
"""Entries that every checkpoint of ours has."""

_log = logging.getLogger("lit_rlvr")


class CheckpointFiles(TorchCheckpointIO):
    """Lets strategies that keep the full weights on every rank also resume from sharded checkpoints."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = read_checkpoint(path)
        if is_sharded(Path(path)):
            moments = read_whole(Path(path), MOMENTS)
            checkpoint["optimizer_states"] = [numbered(checkpoint["optimizer_states"][0], moments)]
        return checkpoint


def checkpoint_folder(run: str | Path) -> Path:
    return Path(run) / "checkpoints"


def list_checkpoints(run: str | Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    found = [p for p in checkpoint_folder(run).glob("step-*.ckpt") if re.fullmatch(r"step-\d+\.ckpt", p.name)]
    return sorted(found, key=lambda p: int(p.stem.removeprefix("step-")))


def last_checkpoint(run: str | Path) -> Path:
    """A run's newest readable checkpoint; a warning names each newer one that cannot be read.

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
    """A checkpoint of ours without reading its tensors: a file is memory-mapped, a folder's shards are left out.

    Raises:
        UserError: it is missing, damaged, or not one of ours.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"ckpt_path: there is no checkpoint '{path}'; use last or a file")
    file = path / REST if is_sharded(path) else path
    try:
        broken = _broken_part(str(file), os.stat(file).st_mtime_ns)
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path} is not a readable checkpoint ({first_line(error)})") from error
    if broken is not None:
        raise UserError(f"{path} is damaged: {broken} is not what was written")
    wanted = PARTS if is_sharded(path) else (*PARTS, WEIGHTS)
    if not isinstance(found, dict) or any(part not in found for part in wanted):
        raise UserError(f"{path} is not a checkpoint of lit-rlvr")
    return found


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ours with the full weights as `state_dict`; raises as `read_rest`."""
    found = read_rest(path)
    return found | {WEIGHTS: read_whole(Path(path), WEIGHTS)} if is_sharded(Path(path)) else found


@lru_cache(maxsize=8)
def _broken_part(path: str, changed: int) -> str | None:
    """The first member of a file whose checksum is wrong, which torch does not check; None if all are right."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def checkpoint_step(path: str | Path) -> int:
    """The optimizer step of a checkpoint; raises as `read_rest`."""
    return int(read_rest(path)["global_step"])
