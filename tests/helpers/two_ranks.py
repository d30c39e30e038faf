"""Two forks of this process as the ranks of a process group."""

import multiprocessing
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist


def in_two_ranks(folder: Path, work: Callable[..., None], *arguments: Any, seconds: float = 60) -> None:
    """Call `work(rank, *arguments)` in two gloo processes; fail if one fails or has not ended after `seconds`."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(folder, rank, work, arguments), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + seconds
    for process in ranks:
        process.join(max(0, deadline - time.monotonic()))
    ended = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    said = "".join(path.read_text() for path in sorted(folder.glob("failed-*")))
    assert ended == [0, 0], f"exit codes {ended} (None = it hangs)\n{said}"


def _rank(folder: Path, rank: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    try:
        work(rank, *arguments)
        dist.barrier()
    except BaseException:
        (folder / f"failed-{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}\n")
        raise
