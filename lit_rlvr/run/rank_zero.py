"""The messages of a run: ours are shown, those that all processes share just once; other packages' are not."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from contextlib import suppress
from typing import Any

from lit_rlvr.common.launch import is_first_process
from lit_rlvr.common.log import log
from lit_rlvr.common.terminal import PlainFormatter

WAIT_SECONDS = 3.0
"""Seconds that other ranks wait for rank 0 to print the same message."""
LINGER_SECONDS = 1.0
"""Seconds that rank 0 stays alive after an error, because it holds the store that the others ask."""
FAILED_KEY = "lit-rlvr/failed"
"""Key of the exit status of a process that failed by itself."""
LEVELS = {
    "lightning.pytorch": logging.WARNING,
    "lightning.fabric": logging.WARNING,
    "lightning.fabric.strategies.launchers.subprocess_script": logging.INFO,  # it reports which process died
    "huggingface_hub": logging.ERROR,  # it logs every attempt without a network
    "bitsandbytes": logging.ERROR,  # it complains about an optional package
}
"""Logger of another package -> the least level of its messages that are shown."""
EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # the loaders yield lists of tokens; there is nothing to parallelise
    ".*overridden `transfer_batch_to_device`.*",
    ".*args parameter is intended to run from within Python.*",
    ".*sync_dist=True.*",  # metrics are summed over ranks before they are logged
    ".*in eval mode at the start of training.*",  # the policy has no dropout on purpose
    ".*reduce_op.*",
    ".*LeafSpec.*",
    ".*Total length of .* across ranks is zero.*",  # no validation set, which we report once
    ".*assuming the intent is to load in a single process.*",  # a sharded checkpoint is read whole
    ".*dataloader is not resumable.*",  # its position is the data module's cursor
)
"""Warnings of Lightning and torch about things that we do on purpose."""


class RankZeroFilter(logging.Filter):
    """A filter that lets only rank 0 print during set-up, when all processes print the same.

    Afterwards every process prints.
    """

    set_up = True

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.set_up or is_first_process()


RANK_ZERO_FILTER = RankZeroFilter()


def show_messages() -> None:
    """Print our messages plainly on stderr, unless the program has its own handlers for them."""
    if log.hasHandlers():
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter())
    RANK_ZERO_FILTER.set_up = True
    handler.addFilter(RANK_ZERO_FILTER)
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def silence_other_packages() -> None:
    """Silence messages of other packages about things that we do on purpose.

    Call it once Lightning and transformers are imported, if they are needed: importing them takes seconds.
    """
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    if "transformers" in sys.modules:
        from transformers.utils import logging as hf_logging

        hf_logging.disable_progress_bar()
        hf_logging.set_verbosity_error()
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def printed_by_another(message: str) -> bool:
    """Return whether another process of the run prints the same message; the first one to ask prints it.

    Before the processes know each other, the first process prints; its launcher ends the others meanwhile.
    """
    store = run_store()
    if store is None:
        time.sleep(0.0 if is_first_process() else WAIT_SECONDS)
        return False
    try:
        return int(store.add(f"lit-rlvr/error/{message}", 1)) > 1
    except RuntimeError:  # the store died with rank 0
        return False


def leave(status: int) -> None:
    """Publish the exit status of a process that fails by itself, and let rank 0 exit first, once all have printed.

    Rank 0 holds the store, and Lightning's launcher kills it a few seconds after another process has ended.
    """
    store = run_store()
    if store is not None:
        with suppress(RuntimeError):  # the store died with rank 0
            store.set(FAILED_KEY, str(status))
            time.sleep(LINGER_SECONDS * (1 if is_first_process() else 2))


def status_of_failed() -> int | None:
    """Return the exit status of a process that has failed by itself, and has said why; None if there is none.

    Only rank 0 knows: torch prints its own stack if the store has died with rank 0.
    """
    store = run_store() if is_first_process() else None
    if store is not None and store.check([FAILED_KEY]):
        return int(store.get(FAILED_KEY))
    return None


def run_store() -> Any:
    """Return the store that all processes of the run share.

    None for a run of one process, or if torch is not imported.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.distributed_c10d._get_default_store()
