"""`lit-rlvr` that kills itself in the middle of a checkpoint: `tiny_killed.py MOMENT STEP fit ...`.

MOMENT: torn = half of the new file is written; whole = all of it, not yet under its name; named = the old one is still
there too.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lit_rlvr.cli.main import main

moment, step = sys.argv.pop(1), int(sys.argv.pop(1))
save, replace = Trainer.save_checkpoint, os.replace


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def save_checkpoint(self: Trainer, path: Path, *args: Any, **kwargs: Any) -> None:
    save(self, path, *args, **kwargs)
    if self.global_step == step and moment == "torn":
        os.truncate(path, path.stat().st_size // 2)
        die()


def replace_file(source: Path, target: Path) -> None:
    ours = Path(target).name == f"step-{step:06d}.ckpt"
    if ours and moment == "whole":
        die()
    replace(source, target)
    if ours and moment == "named":
        die()


Trainer.save_checkpoint = save_checkpoint  # type: ignore[method-assign]
os.replace = replace_file  # type: ignore[assignment]
main()
