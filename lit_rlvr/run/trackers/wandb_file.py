"""Reads the files that W&B writes offline; W&B itself has no reader for Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MAGIC, BLOCK, HEADER = b":W&B", 32768, 7
WHOLE, FIRST, LAST = 1, 2, 4
"""Kinds of pieces: a whole record, and the first and last piece of one; others are in between."""


def read_records(path: Path) -> Iterator[Any]:
    """The complete records of a .wandb file, as W&B's protobuf `Record`; the end of a torn file is left out.

    The file is a log of LevelDB: blocks of 32 KiB with pieces of records, each after its checksum (4 bytes), length (2)
    and kind (1). A piece never crosses the end of a block.
    """
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    position, content = HEADER, b""
    while data.startswith(MAGIC) and position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        piece = data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind == 0 or len(piece) < length:
            return
        content = piece if kind in (WHOLE, FIRST) else content + piece
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            yield record


def last_offline_step(paths: Sequence[Path]) -> int | None:
    """The last step whose metrics are in any of the files; None = there are none."""
    records = (record for path in paths for record in read_records(path))
    steps = [record.history.step.num for record in records if record.WhichOneof("record_type") == "history"]
    return max(steps, default=None)
