"""What the processes of a run settle before it begins: how long they wait for each other, and where they resume."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.common.resuming import run_folder_option
from lit_rlvr.distributed.collectives import gather_objects, world_size
from lit_rlvr.distributed.fsdp2 import extend_timeouts
from lit_rlvr.errors import UserError
from lit_rlvr.run.rank_zero import RANK_ZERO_FILTER


class RankSetUp(Callback):
    """The preparation of each process of a distributed run.

    It sets the timeout of the process group, checks that all processes resume alike, and lets every process print its
    messages from the first validation or iteration on. Lightning's launcher, torchrun and Slurm end the other processes
    when one dies. Without them, a process notices that another one has died when it next waits for it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if world_size() > 1:
            extend_timeouts(trainer.strategy)
            check_same_checkpoint(trainer.ckpt_path)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        RANK_ZERO_FILTER.set_up = False

    on_train_start = on_validation_start = on_sanity_check_start


def check_same_checkpoint(path: str | Path | None) -> None:
    """Check that all processes resume from the same checkpoint, or none does.

    Collective: call it on every rank.

    Raises:
        UserError: they do not; the folder of a run is on a machine's own disk, for example.
    """
    names = gather_objects("no checkpoint" if path is None else Path(path).name)
    for number, name in enumerate(names):
        if name != names[0]:
            raise UserError(
                f"--ckpt_path: process 0 begins from {names[0]}, process {number} from {name}; all machines need the "
                f"same {run_folder_option()}"
            )
