"""`lit-rlvr split`: writes the training and held-out rows of a config's data to files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlvr.common.files import check_new, write_atomically
from lit_rlvr.datamodules.reading.readers import as_row
from lit_rlvr.errors import UserError
from lit_rlvr.types import Sample, Video

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.datamodules.base import Split

_log = logging.getLogger("lit_rlvr")
SETS: tuple[Split, ...] = ("train", "validation", "test")


def write_split(data: PromptDataModule, out: Path) -> list[Path]:
    """Write the rows of each set to a file, including rows that training drops for their length.

    Args:
        out: folder for `train.jsonl`, `validation.jsonl` and `test.jsonl`.

    Returns:
        The files written. Paths of images in them are relative to `out`.

    Raises:
        UserError: one of the files exists, or there are no rows.
    """
    for split in SETS:
        check_new(out / f"{split}.jsonl", "--out")
    from_file = any(location is not None for location in data.locations.values())
    written = []
    for split in SETS:
        samples = data.load(split)
        if samples:
            path = out / f"{split}.jsonl"
            rows = [_with_moved_images(as_row(sample, from_file), sample, out) for sample in samples]
            write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            _log.info("%s: %d rows", path, len(rows))
            written.append(path)
    if not written:
        raise UserError(f"data: {data.name} has no rows to write")
    return written


def _with_moved_images(row: dict[str, Any], sample: Sample, out: Path) -> dict[str, Any]:
    """Return a row whose relative paths of media start from the folder `out` instead of that of its file."""
    sources = [x.frames if isinstance(x, Video) else x for x in getattr(sample.images, "sources", ())]
    files = [file for source in sources for file in (source if isinstance(source, tuple) else (source,))]
    paths = [Path(file) for file in files if isinstance(file, str | Path)]

    def moved(cell: Any) -> Any:
        if isinstance(cell, Mapping):
            return {name: moved(value) for name, value in cell.items()}
        if isinstance(cell, list):
            return [moved(value) for value in cell]
        if isinstance(cell, str) and cell and not Path(cell).is_absolute():
            for path in paths:
                if path.parts[-len(Path(cell).parts) :] == Path(cell).parts:
                    return os.path.relpath(path, out)
        return cell

    return {name: moved(cell) for name, cell in row.items()} if paths else row
