"""Sets an earlier run in a run folder aside until the new run has a checkpoint to replace it.

The moves may be interrupted at any moment: `.replaced` holds a whole run, `.replaced.tmp` the part of one moved so far,
in either direction. Files stay on the same disk, so that each move is a rename.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from lit_rlvr.errors import UserError, shown
from lit_rlvr.run.thumbnails import list_thumbnails

ASIDE, MOVING = ".replaced", ".replaced.tmp"
FAILED = ".failed"
"""Folder for the files of a run that ended before its first checkpoint."""
LEFT = (
    "checkpoints/*.ckpt", "tensorboard/events.out.tfevents.*", "rollouts/step-*.json", "skipped/step-*.json",
    "summary.json", "metrics.csv", "completions.jsonl", "curves.png", "failed_rewards.jsonl", "live.json", "trackers/*",
)  # fmt: skip

_log = logging.getLogger("lit_rlvr")


def set_aside(root: Path) -> None:
    """Make room for a new run; a run already set aside is kept, and files written since then are dropped.

    Raises:
        UserError: the files cannot be moved.
    """
    try:
        if (root / ASIDE).exists():
            kept = root / ASIDE
            _log.warning("%s: the earlier run is kept in %s until the first checkpoint", shown(root), shown(kept))
            move_to_failed(root)
        elif left := list_left(root):
            _move(left, root, root / MOVING)
            if (root / "config.yaml").is_file():  # copied, not moved: `--ckpt_path last` starts a killed run again
                shutil.copy(root / "config.yaml", root / MOVING)
            os.replace(root / MOVING, root / ASIDE)
    except OSError as error:
        recover(root)
        raise UserError(
            f"trainer.default_root_dir: the run in {shown(root)} cannot be set aside: {error.strerror}"
        ) from error


def recover(root: Path) -> None:
    """Undo an interrupted move."""
    moving = root / MOVING
    if moving.exists():
        _move([*moving.glob("*/*"), *(path for path in moving.iterdir() if path.is_file())], moving, root)
        _remove(moving)


def put_back(root: Path) -> None:
    """Restore the run that was set aside, if there is one."""
    if not (root / ASIDE).exists():
        return
    went = move_to_failed(root)
    os.replace(root / ASIDE, root / MOVING)
    recover(root)
    where = f"; the new one's files are in {shown(root / FAILED)}" if went else ""
    said = "%s: restored the earlier run, because the new one ended before its first checkpoint%s"
    _log.warning(said, shown(root), where)


def drop(root: str | Path) -> None:
    """Remove the run that was set aside, if there is one."""
    _remove(Path(root, ASIDE))


def drop_failed(root: str | Path) -> None:
    """Remove the files of a run that ended before its first checkpoint, if there are any."""
    _remove(Path(root, FAILED))


def list_left(root: Path) -> list[Path]:
    """The files that a run wrote to its folder, and no others."""
    found = [path for pattern in LEFT for path in sorted(root.glob(pattern))]
    return [*list_thumbnails(root), *found]


def move_to_failed(root: Path) -> bool:
    """Move away the files of a failed run; returns whether there were any."""
    left = list_left(root)
    if left:
        _remove(root / FAILED)
        _move(left, root, root / FAILED)
    return bool(left)


def _move(paths: Iterable[Path], source: Path, target: Path) -> None:
    """Move files and nested folders from one run folder into another, creating it if necessary."""
    target.mkdir(exist_ok=True)
    for path in paths:
        new = target / path.relative_to(source)
        if not new.parent.exists():
            _make_folder(new.parent, path.parent)
        os.replace(path, new)


def _make_folder(new: Path, old: Path) -> None:
    """Create a folder to move files to; if the old one is on another disk, a link into it."""
    if _disk(old) == _disk(new.parent):
        new.mkdir()
    else:
        apart = old.resolve() / new.parent.name.removesuffix(".tmp")
        apart.mkdir(exist_ok=True)
        new.symlink_to(apart)


def _disk(folder: Path) -> int:
    return folder.stat().st_dev


def _remove(folder: Path) -> None:
    """Delete a folder, if it exists, and the folders on other disks that it links to."""
    for part in folder.glob("*"):
        if part.is_symlink():
            shutil.rmtree(part.resolve())
    if folder.exists():
        shutil.rmtree(folder)
