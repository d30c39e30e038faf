"""What an earlier run left is there until something replaces it, whenever a process is killed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import group, make_run

from lit_rlvr.errors import UserError
from lit_rlvr.run import folder as replaced
from lit_rlvr.run.folder import (
    back_up_earlier_run,
    check_run_folder,
    claim_run_folder,
    clear_run_folder,
    delete_backup,
    list_run_files,
    lock_run_folder,
    restore_earlier_run,
    undo_interrupted_move,
)

OWN = ("notes.txt", "images/my.png", "checkpoints/my.ckpt", "trackers/mine.db")
"""Files of the user's in the folder of a run."""


def old_run(root: Path) -> dict[str, bytes]:
    """A run with a file and a sharded checkpoint, and files of the user's; what is in it."""
    make_run(root, traces={2: [group()]})
    ours = (
        "checkpoints/step-000004.ckpt",
        "checkpoints/step-000005.ckpt/meta.pt",
        f"images/{'0' * 16}.png",
        "tensorboard/events.out.tfevents.1",
        "skipped/step-000001-rank-0.json",
    )
    for name in (*ours, *OWN):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"old {name}")
    return content(root)


NEW_METRICS = "step,rollout/reward\n"


def content(root: Path) -> dict[str, bytes]:
    """All files but those of the lock and of a run that failed."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock" and not path.is_relative_to(root / ".failed")
    }


def begin(root: Path) -> None:
    """What a new run writes before its first checkpoint."""
    for name in ("config.yaml", "metrics.csv", "failed_rewards.jsonl", "rollouts/step-000002.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(NEW_METRICS if name == "metrics.csv" else "new")


def test_a_run_is_set_aside_whole_and_put_back_whole(tmp_path: Path) -> None:
    before = old_run(tmp_path)
    back_up_earlier_run(tmp_path)
    assert not list_run_files(tmp_path) and all((tmp_path / name).is_file() for name in OWN)
    assert content(tmp_path / ".replaced") == {name: text for name, text in before.items() if name not in OWN}
    begin(tmp_path)
    restore_earlier_run(tmp_path)
    assert content(tmp_path) == before
    assert (tmp_path / ".failed" / "failed_rewards.jsonl").read_text() == "new", "the message tells of it"


class Killed(BaseException):
    pass


def cut_off(monkeypatch: pytest.MonkeyPatch, moves: int, work: Callable[[Path], None], root: Path) -> bool:
    """End some work after so many moves; whether it had not come to its end by then."""
    replace, done = os.replace, 0

    def count(source: Any, target: Any) -> None:
        nonlocal done
        if done == moves:
            raise Killed
        done += 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", count)
        try:
            work(root)
        except Killed:
            return True
    return False


def test_killed_while_it_is_set_aside_a_run_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = 0
    while True:
        root = tmp_path / str(moves)
        before = old_run(root)
        if not cut_off(monkeypatch, moves, back_up_earlier_run, root):
            break
        undo_interrupted_move(root)
        assert content(root) == before, f"after {moves} moves"
        moves += 1
    assert moves == 10, "every file, the sharded checkpoint, and the folder's name"


def test_killed_while_it_is_put_back_a_run_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = 0
    while True:
        root = tmp_path / str(moves)
        before = old_run(root)
        back_up_earlier_run(root)
        begin(root)
        if not cut_off(monkeypatch, moves, restore_earlier_run, root):
            break
        with lock_run_folder(root):  # as the next `fit` does
            restore_earlier_run(root)
        assert content(root) == before, f"after {moves} moves"
        moves += 1
    assert moves > 10


def test_on_another_disk_files_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are often: the folder that is set aside links to them."""
    root, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (elsewhere / "checkpoints").mkdir(parents=True)
    root.mkdir()
    (root / "checkpoints").symlink_to(elsewhere / "checkpoints")
    before = old_run(root)
    assert "notes.txt" in before
    monkeypatch.setattr(replaced, "_device", lambda folder: folder.resolve().is_relative_to(elsewhere))
    back_up_earlier_run(root)
    kept = elsewhere / "checkpoints/.replaced/step-000004.ckpt"
    assert kept.is_file() and (root / ".replaced/checkpoints/step-000004.ckpt").samefile(kept)
    restore_earlier_run(root)
    assert content(root) == before and not kept.parent.exists()
    assert (elsewhere / "checkpoints/step-000005.ckpt/meta.pt").is_file()
    back_up_earlier_run(root)
    delete_backup(root)
    assert not kept.parent.exists() and not (root / ".replaced").exists()
    assert all((root / name).read_text() == f"old {name}" for name in OWN)


def test_what_cannot_be_moved_stays_and_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, replace = old_run(tmp_path), os.replace

    def refuse(source: Any, target: Any) -> None:
        if Path(source) == tmp_path / "metrics.csv":
            raise OSError(1, "Operation not permitted")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="cannot be set aside: Operation not permitted"):
        back_up_earlier_run(tmp_path)
    assert content(tmp_path) == before


def killed_before_its_first_checkpoint(root: Path) -> dict[str, bytes]:
    """A run that was being replaced when the new one was killed."""
    before = old_run(root)
    back_up_earlier_run(root)
    begin(root)
    return before


def test_after_a_kill_the_next_run_decides(tmp_path: Path) -> None:
    """Neither resumed nor overwritten, it is back; overwritten again, it stays until there is a new one."""
    before = killed_before_its_first_checkpoint(tmp_path / "a")
    with (
        pytest.raises(UserError, match="already holds a run"),
        lock_run_folder(tmp_path / "a"),
        claim_run_folder(tmp_path / "a", False, False),
    ):
        raise AssertionError("it is refused")
    assert content(tmp_path / "a") == before

    killed_before_its_first_checkpoint(tmp_path / "b")
    with lock_run_folder(tmp_path / "b"), claim_run_folder(tmp_path / "b", False, True):
        clear_run_folder(tmp_path / "b", True)
        assert not list_run_files(tmp_path / "b") and (tmp_path / "b/.replaced/summary.json").is_file()
        begin(tmp_path / "b")
    assert not (tmp_path / "b/.replaced").exists(), "the new one came to its end"
    assert (tmp_path / "b/metrics.csv").read_text() == NEW_METRICS


def test_a_new_run_with_a_checkpoint_is_not_replaced_by_the_old(tmp_path: Path) -> None:
    """Killed, or ended by an error, between its first checkpoint and the end of the old one."""
    killed_before_its_first_checkpoint(tmp_path)
    (tmp_path / "checkpoints/step-000001.ckpt").write_text("new")
    with (
        pytest.raises(UserError, match="already holds a run"),
        lock_run_folder(tmp_path),
        claim_run_folder(tmp_path, False, False),
    ):
        raise AssertionError("it is refused")
    assert not (tmp_path / ".replaced").exists() and (tmp_path / "metrics.csv").read_text() == NEW_METRICS


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *[("alone", name) for name in ("metrics.csv", "summary.json", "config.yaml", "completions.jsonl")],
        *[("run", name) for name in ("metrics.csv", "summary.json")],
    ],
)
def test_results_of_the_users_own_are_never_replaced(tmp_path: Path, folder: str, name: str) -> None:
    """Neither in a folder of their own, which holds no run, nor among the files of a run."""
    root = tmp_path / folder
    root.mkdir()
    if folder == "run":
        old_run(root)
    (root / name).write_text('{"loss": 1}' if name == "summary.json" else "epoch,loss\n1,2\n")
    with pytest.raises(UserError, match=f"{name} is not from a run of lit-rlvr and would be replaced"):
        check_run_folder(root, resumes=False, overwrite=True)
