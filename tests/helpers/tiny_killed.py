"""Imported first, it kills all processes of a command in the middle of a checkpoint: `KILLED_AT="MOMENT STEP"`.

MOMENT: torn = half of the new file, or of one process's shards, is written; whole = all of it, not yet under its name;
named = the old one is still there too; any = this does nothing. Shards are torn a second after training has gone on.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lit_rlvr.distributed.checkpoints import ShardWriter

moment, step = os.environ["KILLED_AT"].split()[0], int(os.environ["KILLED_AT"].split()[1])
save, replace, write = Trainer.save_checkpoint, os.replace, ShardWriter.write_data


def die() -> None:
    """Kill this command with all of its processes."""
    os.killpg(0, signal.SIGKILL)


def tear(path: Path) -> None:
    """Cut a file in half, and die."""
    os.truncate(path, path.stat().st_size // 2)
    die()


def save_checkpoint(self: Trainer, path: Path, *args: Any, **kwargs: Any) -> None:
    """Save a checkpoint; at the moment `torn`, tear its file."""
    save(self, path, *args, **kwargs)
    if self.global_step == step and moment == "torn" and path.is_file():
        tear(path)


def write_data(self: ShardWriter, *args: Any) -> Any:
    """Write a shard; at the moment `torn`, tear it."""
    written = write(self, *args)
    if Path(self.path).name == f"step-{step:06d}.tmp" and moment == "torn":
        time.sleep(1)
        tear(next(Path(self.path).glob("*.distcp")))
    return written


def replace_file(source: Path, target: Path) -> None:
    """Give a file its name; at the moment `whole` die before it, at `named` after it."""
    ours = Path(target).name == f"step-{step:06d}.ckpt"
    if ours and moment == "whole":
        die()
    replace(source, target)
    if ours and moment == "named":
        die()


Trainer.save_checkpoint = save_checkpoint  # type: ignore[method-assign]
ShardWriter.write_data = write_data  # type: ignore[method-assign]
os.replace = replace_file  # type: ignore[assignment]
