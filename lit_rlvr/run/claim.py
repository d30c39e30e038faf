"""Claims a run folder for one run, and keeps an earlier run until there is something to replace it.

Only `clear` moves files of an earlier run away, when the new run begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lit_rlvr.distributed.checkpoint_files import list_checkpoints
from lit_rlvr.errors import UserError, shown
from lit_rlvr.files import check_writable
from lit_rlvr.run.live import LIVE, read_live
from lit_rlvr.run.lock import locked
from lit_rlvr.run.logger import read_metrics
from lit_rlvr.run.replaced import ASIDE, drop, list_left, move_to_failed, put_back, recover, set_aside

CONFIG_HEADER = "# The settings of a run of lit-rlvr, with all defaults filled in.\n"
"""First line of the `config.yaml` in a run folder, by which it is told from a user's own."""


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Hold a run folder exclusively, and repair what a killed process left half done.

    The folder is created if necessary, and removed again if it stays empty.

    Raises:
        UserError: the folder cannot be written, or another run is using it.
    """
    check_writable(root, "trainer.default_root_dir")
    made = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        with locked(root):
            recover(root)
            if list_checkpoints(root):
                drop(root)
            yield
    finally:
        for path in made:
            with suppress(OSError):  # there is a run in it
                path.rmdir()


@contextmanager
def room(root: Path, resumes: bool, overwrite: bool) -> Iterator[None]:
    """Check that a run may begin in a folder that is held; if it ends before its first checkpoint, restore the earlier
    run that `clear` has set aside.

    Raises:
        UserError: the folder has an earlier run, which is neither resumed nor overwritten, or files of the user's own
            under the names of a run's.
    """
    if not resumes:
        _check_own(root)
        if not overwrite:
            put_back(root)
            _check_free(root)
    try:
        yield
    except BaseException:
        if not list_checkpoints(root):
            put_back(root)
        raise
    drop(root)


def clear(root: Path, overwrite: bool) -> None:
    """Make room for a new run: set an earlier run aside, or move what a failed start left to `.failed`.

    Raises:
        UserError: the files cannot be moved.
    """
    if (root / ASIDE).exists() or (overwrite and _marks(root)):
        set_aside(root)
    elif _has_config(root):
        move_to_failed(root)


def check_room(root: Path, resumes: bool, overwrite: bool) -> None:
    """Refuse what `held` and `room` would refuse, except a folder in use; leaves everything as it is.

    Raises:
        UserError: as there.
    """
    check_writable(root, "trainer.default_root_dir")
    if not resumes:
        _check_own(root)
        if not overwrite:
            _check_free(root)


def _check_own(root: Path) -> None:
    """Refuse a folder without a run that holds files which a run would replace."""
    if _marks(root) or (root / ASIDE).exists() or _has_config(root):
        return
    left = [path for path in list_left(root) if path.parent == root]  # folders may hold a logger's or tracker's files
    foreign = [path for path in left if path.name != LIVE or read_live(root) is None]
    config = root / "config.yaml"
    if config.is_file() and config.stat().st_size:
        foreign.append(config)
    if foreign:
        raise UserError(
            f"trainer.default_root_dir: {shown(foreign[0])} is not from a run of lit-rlvr and would be replaced; "
            "choose another folder, or move it away"
        )


def _has_config(root: Path) -> bool:
    """Whether a folder has the `config.yaml` of a run."""
    config = root / "config.yaml"
    return config.is_file() and config.read_text(errors="replace").startswith(CONFIG_HEADER)


def _marks(root: Path) -> list[Path]:
    """Files that show that a folder holds a run; those of a run that failed before its first step do not count."""
    found = [root / name for name in ("summary.json", "metrics.csv", "checkpoints") if (root / name).exists()]
    return [] if _has_config(root) and not _has_steps(root, found) else found


def _has_steps(root: Path, found: list[Path]) -> bool:
    names = {path.name for path in found}
    try:
        trained = "metrics.csv" in names and any(read_metrics(root / "metrics.csv"))
    except (ValueError, KeyError):
        trained = True  # it cannot be read, so it may be worth something
    return "summary.json" in names or trained or bool(list_checkpoints(root))


def _check_free(root: Path) -> None:
    if taken := _marks(root):
        raise UserError(
            f"trainer.default_root_dir: {shown(root)} already holds a run ({taken[0].name}); resume it with "
            "--ckpt_path last, replace it with --overwrite true, or choose another folder"
        )
