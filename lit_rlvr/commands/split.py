"""`lit-rlvr split`: writes the training and held-out rows of a config's data to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lit_rlvr.common.files import check_new, write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.datamodules.reading.readers import as_row
from lit_rlvr.errors import UserError

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.datamodules.reading.split import Split

SETS: tuple[Split, ...] = ("train", "validation", "test")


def write_split(data: PromptDataModule, out: Path) -> list[Path]:
    """Write the rows of each set to a file, including rows that training drops for their length.

    Args:
        data: the sets.
        out: folder for `train.jsonl`, `validation.jsonl` and `test.jsonl`.

    Returns:
        The files written. Paths of images in them are relative to `out`.

    Raises:
        UserError: one of the files exists, or there are no rows.
    """
    for split in SETS:
        check_new(out / f"{split}.jsonl", "--out")
    if data.parts:
        raise UserError("data: rows of a Mixture do not fit into one file; split each of its sets on its own")
    from_file = any(location is not None for location in data.locations.values())
    written = []
    for split in SETS:
        samples = data.load(split)
        if samples:
            path = out / f"{split}.jsonl"
            rows = []
            for sample in samples:
                rows.append(as_row(sample, from_file, out))
            lines = []
            for row in rows:
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            write_atomically(path, "".join(lines))
            log.info("%s: %d rows", path, len(rows))
            written.append(path)
    if not written:
        raise UserError(f"data: {data.name} has no rows to write")
    return written
