"""The run folder: locks it for one run, and keeps an earlier run until the new one has a checkpoint."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from lit_rlvr.common.files import check_writable, writing
from lit_rlvr.common.log import log
from lit_rlvr.common.paths import shown
from lit_rlvr.common.resuming import how_to_replace, how_to_resume, run_folder_option
from lit_rlvr.common.run_files import LIVE, THUMBNAILS, is_complete, list_checkpoints, read_live, read_metrics
from lit_rlvr.errors import UserError

LOCK = ".lock"
"""File that a run holds; only a killed one leaves it."""


@contextmanager
def locked(root: Path, option: str) -> Iterator[None]:
    """Hold a folder's lock file, and remove it afterwards; the kernel releases the lock of a killed process.

    The lock belongs to the process (`fcntl.lockf`), not to the open file: an engine or worker that outlives a killed
    run does not hold it.

    Raises:
        UserError: another process holds the lock, and the message says which; or the folder was moved or deleted
            meanwhile. The message names the `option`.
    """
    path = root.absolute() / LOCK
    while not (file := _lock(path, option)):  # another process has just removed it
        pass
    with file, writing(f"{option}: {shown(root)}"):
        try:
            yield
        except FileNotFoundError as error:
            if path.exists():
                raise
            raise UserError(
                f"{option}: {shown(root)} was moved or deleted while this run used it; resume the run where its "
                "checkpoints are now"
            ) from error
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path, option: str) -> TextIO | None:
    """Create and lock a file; return None if another process has removed it meanwhile."""
    file = path.open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            with file:
                file.seek(0)
                raise UserError(
                    f"{option}: another run is using {shown(path.parent)} ({file.read()}); wait until it ends, or "
                    "choose another folder"
                ) from error
        log.warning("%s cannot be locked (%s): make sure that no other run uses this folder", path, error.strerror)
        return file
    if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
        file.close()
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


BACKUP = ".replaced"
PARTIAL_BACKUP = ".replaced.tmp"
FAILED_FOLDER = ".failed"
"""Folder for the files of a run that ended before its first checkpoint."""
RUN_FILES = (
    THUMBNAILS, "checkpoints/step-[0-9]*.ckpt", "checkpoints/best.ckpt", "tensorboard/events.out.tfevents.*",
    "rollouts/step-*.json", "record/run.json", "record/iteration-*.npz", "skipped/step-*.json", "summary.json",
    "metrics.csv", "completions.jsonl", "validation.jsonl", "curves.png", "failed_rewards.jsonl", "live.json",
    "judge_answers.sqlite*", "judge_answers-*.sqlite*",
    *(f"trackers/{name}" for name in ("runs.json", "mlflow.db", "mlflow-files", "wandb")),
)  # fmt: skip


def back_up_earlier_run(root: Path) -> None:
    """Move an earlier run to the backup. If there is a backup already, keep it and move later files to `.failed`.

    Raises:
        UserError: the files cannot be moved.
    """
    try:
        if (root / BACKUP).exists():
            kept = root / BACKUP
            log.warning("%s: the earlier run is kept in %s until the first checkpoint", shown(root), shown(kept))
            move_to_failed(root)
        elif files := list_run_files(root):
            _move(files, root, root / PARTIAL_BACKUP)
            if (root / "config.yaml").is_file():  # copied, not moved: `--ckpt_path last` starts a killed run again
                shutil.copy(root / "config.yaml", root / PARTIAL_BACKUP)
            os.replace(root / PARTIAL_BACKUP, root / BACKUP)
    except OSError as error:
        undo_interrupted_move(root)
        raise UserError(
            f"{run_folder_option()}: the run in {shown(root)} cannot be set aside: {error.strerror}"
        ) from error


def undo_interrupted_move(root: Path) -> None:
    """Undo an interrupted move."""
    partial = root / PARTIAL_BACKUP
    if partial.exists():
        _move([*partial.glob("*/*"), *(path for path in partial.iterdir() if path.is_file())], partial, root)
        remove_folder(partial)


def restore_earlier_run(root: Path) -> None:
    """Restore the run in the backup, if there is one."""
    if not (root / BACKUP).exists():
        return
    has_failed_files = move_to_failed(root)
    os.replace(root / BACKUP, root / PARTIAL_BACKUP)
    undo_interrupted_move(root)
    if has_failed_files:
        where = f"; the new one's files are in {shown(root / FAILED_FOLDER)}"
    else:
        where = ""
    log.warning(
        "%s: restored the earlier run, because the new one ended before its first checkpoint%s", shown(root), where
    )


def delete_backup(root: str | Path) -> None:
    """Delete the backup of an earlier run, if there is one."""
    remove_folder(Path(root, BACKUP))


def list_run_files(root: Path) -> list[Path]:
    """List the files that a run wrote to its folder, and no others."""
    files = []
    for pattern in RUN_FILES:
        files.extend(sorted(root.glob(pattern)))
    return files


def move_to_failed(root: Path) -> bool:
    """Move the files of a failed run to `.failed`; return whether there were any."""
    files = list_run_files(root)
    if files:
        remove_folder(root / FAILED_FOLDER)
        _move(files, root, root / FAILED_FOLDER)
    return bool(files)


def _move(paths: Iterable[Path], source: Path, target: Path) -> None:
    """Move files and nested folders from one run folder into another, and create that if necessary."""
    target.mkdir(exist_ok=True)
    for path in paths:
        new = target / path.relative_to(source)
        if not new.parent.exists():
            _make_folder(new.parent, path.parent)
        os.replace(path, new)


def _make_folder(new: Path, old: Path) -> None:
    """Create a folder to move files to; link it to the old folder's disk if that is another one."""
    if _device(old) == _device(new.parent):
        new.mkdir()
    else:
        on_other_disk = old.resolve() / new.parent.name.removesuffix(".tmp")
        on_other_disk.mkdir(exist_ok=True)
        new.symlink_to(on_other_disk)


def _device(folder: Path) -> int:
    return folder.stat().st_dev


def remove_folder(folder: Path) -> None:
    """Delete a folder, if it exists, and the folders on other disks that it links to."""
    for part in folder.glob("*"):
        if part.is_symlink():
            shutil.rmtree(part.resolve())
    if folder.exists():
        shutil.rmtree(folder)


CONFIG_HEADER = "# The settings of a run of lit-rlvr, with all defaults filled in.\n"
"""First line of a run folder's `config.yaml`, which distinguishes it from a user's own."""


@contextmanager
def lock_run_folder(root: Path) -> Iterator[None]:
    """Lock a run folder as `lock_folder` does, and undo a move that a killed process left half done."""
    with lock_folder(root, run_folder_option()):
        undo_interrupted_move(root)
        if list_checkpoints(root):
            delete_backup(root)
        yield


@contextmanager
def lock_folder(root: Path, option: str) -> Iterator[None]:
    """Lock a folder; create it if necessary, and remove it again if it stays empty.

    Raises:
        UserError: the folder cannot be written, or another process has locked it; the message names the `option`.
    """
    check_writable(root, option)
    created = []
    for path in (root, *root.parents):
        if not path.exists():
            created.append(path)
    root.mkdir(parents=True, exist_ok=True)
    try:
        with locked(root, option):
            yield
    finally:
        for path in created:
            with suppress(OSError):  # there is a run in it
                path.rmdir()


@contextmanager
def claim_run_folder(root: Path, resumes: bool, overwrite: bool) -> Iterator[None]:
    """Check that a run may begin in a locked folder.

    If the new run ends before its first checkpoint, the earlier one is restored.

    Raises:
        UserError: the folder has an earlier run, which is neither resumed nor overwritten, or files of the user's own
            under the names of a run's.
    """
    if not resumes:
        _check_no_foreign_files(root)
        if not overwrite:
            restore_earlier_run(root)
            _check_no_earlier_run(root)
    try:
        yield
    except BaseException:
        if not list_checkpoints(root):
            restore_earlier_run(root)
        raise
    delete_backup(root)


def ended_early(root: Path, was_locked: bool) -> bool:
    """Return whether the folder holds a run that ended before its first checkpoint and has no results.

    Args:
        root: the run folder.
        was_locked: there was a lock file before this process locked the folder: only a killed run leaves one.
    """
    has_begun = was_locked or (root / "config.yaml").is_file() or read_live(root) is not None
    return has_begun and not list_checkpoints(root) and not is_complete(root)


def clear_run_folder(root: Path, overwrite: bool) -> None:
    """Empty the folder for a new run: back up an earlier run, or move what a failed start left to `.failed`.

    Raises:
        UserError: the files cannot be moved.
    """
    if (root / BACKUP).exists() or (overwrite and _evidence_of_run(root)):
        back_up_earlier_run(root)
    elif _has_config(root):
        move_to_failed(root)


def check_run_folder(root: Path, resumes: bool, overwrite: bool) -> None:
    """Refuse what `lock_run_folder` and `claim_run_folder` would refuse, except a folder in use; change nothing.

    Raises:
        UserError: as there.
    """
    check_writable(root, run_folder_option())
    if not resumes:
        _check_no_foreign_files(root)
        if not overwrite:
            _check_no_earlier_run(root)


def _check_no_foreign_files(root: Path) -> None:
    """Refuse a folder in which a new run would replace files of the user's own."""
    foreign = []
    for name in RESULTS:
        if (root / name).exists() and not _wrote(root / name):
            foreign.append(root / name)
    if not (foreign or _evidence_of_run(root) or (root / BACKUP).exists() or _has_config(root)):
        # Subfolders may hold a logger's or tracker's files.
        files = []
        for path in list_run_files(root):
            if path.parent == root:
                files.append(path)
        foreign = []
        for path in files:
            if path.name != LIVE or read_live(root) is None:
                foreign.append(path)
        config = root / "config.yaml"
        foreign += [config] if config.is_file() and config.stat().st_size else []
    if foreign:
        raise UserError(
            f"{run_folder_option()}: {shown(foreign[0])} is not from a run of lit-rlvr and would be replaced; "
            "choose another folder, or move it away"
        )


RESULTS = {"summary.json": ('"weights_sha256"',), "metrics.csv": ("rollout/reward", "rollout/samples", "val/accuracy")}
"""Files whose names others use, too -> texts of which one is in each that a run wrote."""


def _wrote(path: Path) -> bool:
    """Return whether a run wrote a file with results; a run that has just begun may have left an empty one."""
    text = path.read_text(errors="replace")
    return not text or any(mark in text for mark in RESULTS[path.name])


def _has_config(root: Path) -> bool:
    """Return whether a folder has the `config.yaml` of a run."""
    config = root / "config.yaml"
    return config.is_file() and config.read_text(errors="replace").startswith(CONFIG_HEADER)


def _evidence_of_run(root: Path) -> list[Path]:
    """Return the files that identify a run folder; none for a run that failed before its first step."""
    evidence = []
    for name in RESULTS:
        if (root / name).exists():
            evidence.append(root / name)
    evidence += [root / "checkpoints"] if list_checkpoints(root) else []
    only_metrics = evidence == [root / "metrics.csv"] and _has_config(root)
    if only_metrics and not _has_steps(root / "metrics.csv"):
        return []
    return evidence


def _has_steps(metrics: Path) -> bool:
    try:
        return any(read_metrics(metrics))
    except UserError:
        return True  # an unreadable file may be worth something


def _check_no_earlier_run(root: Path) -> None:
    taken = _evidence_of_run(root)
    if taken:
        raise UserError(
            f"{run_folder_option()}: {shown(root)} already holds a run ({taken[0].name}); {how_to_resume()}, replace "
            f"it with {how_to_replace()}, or choose another folder"
        )
