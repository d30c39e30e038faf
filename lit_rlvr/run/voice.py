"""Prints a message that all processes of a run share only once, on rank 0."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.distributed.collectives import is_first_process, world_size

PATIENCE = 3.0
"""Seconds that another process waits for rank 0 to print the same message."""
LINGER = 1.0
"""Seconds that rank 0 then stays alive for the others to learn of it: it holds the shared store."""
ERROR = "lit-rlvr/error"


class FirstSpeaks(logging.Filter):
    """During set-up all processes print the same messages; afterwards, each process's messages are about itself."""

    set_up = True

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.set_up or is_first_process()


FIRST_SPEAKS = FirstSpeaks()


class SetUpEnds(Callback):
    """Lets every process print its messages once something is generated."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        FIRST_SPEAKS.set_up = False

    on_train_start = on_validation_start = on_sanity_check_start


def said_by_first(message: str) -> bool:
    """Whether rank 0 exits with the same message; it tells the others, which wait for it for a while."""
    if is_first_process():
        if world_size() > 1:
            _store().set(ERROR, message)
            time.sleep(LINGER)
        return False
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if world_size() > 1:
            try:
                if _store().check([ERROR]):
                    return bool(_store().get(ERROR).decode() == message)
            except RuntimeError:  # the store died with rank 0
                return False
        time.sleep(0.1)
    return False


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
