"""Claims a run folder for one run, and keeps an earlier run until there is something to replace it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_rlvr.distributed.checkpoint_files import list_checkpoints
from lit_rlvr.errors import UserError
from lit_rlvr.files import check_writable
from lit_rlvr.run.lock import locked
from lit_rlvr.run.replaced import ASIDE, drop, list_left, put_back, recover, set_aside

CONFIG_HEADER = "# The settings of a run of lit-rlvr, with all defaults filled in.\n"
"""First line of the `config.yaml` in a run folder, by which it is told from a user's own."""


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Hold a run folder exclusively; creates it if necessary and repairs what a killed process left half done.

    Raises:
        UserError: the folder cannot be written, or another run is using it.
    """
    check_writable(root, "trainer.default_root_dir")
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        recover(root)
        if list_checkpoints(root):
            drop(root)
        yield


@contextmanager
def room(root: Path, resumes: bool, overwrite: bool) -> Iterator[None]:
    """Train in a run folder that is held: an earlier run in it is resumed, or kept until it is replaced.

    Raises:
        UserError: the folder has an earlier run, which is neither resumed nor overwritten, or files of the user's own
            under the names of a run's.
    """
    if not resumes:
        _check_own(root)
        if overwrite:
            set_aside(root)
        else:
            put_back(root)
            _check_free(root)
    try:
        yield
    except BaseException:
        if not list_checkpoints(root):
            put_back(root)
        raise
    drop(root)


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
    config = root / "config.yaml"
    given = config.read_text(errors="replace") if config.is_file() else ""
    if _marks(root) or (root / ASIDE).exists() or given.startswith(CONFIG_HEADER):
        return
    left = [path for path in list_left(root) if path.parent == root]  # a logger's own may be there before `config.yaml`
    if foreign := left + ([config] if given else []):
        raise UserError(
            f"trainer.default_root_dir: {foreign[0]} is not from a run of lit-rlvr and would be replaced; choose "
            "another folder, or move it away"
        )


def _marks(root: Path) -> list[Path]:
    """What shows that a folder holds a run."""
    return [root / name for name in ("summary.json", "metrics.csv", "checkpoints") if (root / name).exists()]


def _check_free(root: Path) -> None:
    if taken := _marks(root):
        raise UserError(
            f"trainer.default_root_dir: {root} already holds a run ({taken[0].name}); resume it with --ckpt_path last, "
            "replace it with --overwrite true, or choose another folder"
        )
