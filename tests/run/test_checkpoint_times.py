"""Checkpoints by time: the first iteration, then every so many minutes, and never most of the time."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_llama
from tiny_runs import CLI, fit

from lit_rlvr.run.checkpoint import RunCheckpoint


def saved_iterations(
    monkeypatch: pytest.MonkeyPatch, root: Path, minutes: float, save_seconds: float, every: int
) -> list[int]:
    """Which of 60 iterations of a minute each are saved, if a save takes so long."""
    now, saved = 1000.0, []
    monkeypatch.setattr(RunCheckpoint, "clock", staticmethod(lambda: now))

    def save(path: Path) -> None:
        nonlocal now
        path.write_text("")
        saved.append(trainer.global_step)
        now += save_seconds

    strategy = SimpleNamespace(broadcast=lambda value: value, barrier=lambda: None)
    trainer: Any = SimpleNamespace(
        default_root_dir=str(root),
        is_global_zero=True,
        should_stop=False,
        save_checkpoint=save,
        strategy=strategy,
        global_step=0,
        loggers=(),
    )
    saver: Any = RunCheckpoint(every=every, minutes=minutes)
    saver.on_train_start(trainer, None)
    for iteration in range(1, 61):
        now += 60
        trainer.global_step = iteration
        saver.on_train_batch_end(trainer, SimpleNamespace(iteration=iteration), None, None, 0)
    return saved


@pytest.mark.parametrize(
    ("minutes", "save_seconds", "every", "saved"),
    [
        (5.0, 0.0, 0, [1, *range(6, 61, 5)]),
        (5.0, 14.0, 0, [1, *range(6, 61, 5)]),
        (5.0, 57.0, 0, [1, 20, 39, 58]),  # 20 x 57 s = 19 minutes
        (0.0, 0.0, 0, []),
        (0.0, 0.0, 25, [25, 50]),
        (20.0, 0.0, 15, [1, 15, 30, 45, 60]),  # counted from the last save, whatever it was for
    ],
)
def test_a_checkpoint_is_due_after_minutes_or_iterations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, minutes: float, save_seconds: float, every: int, saved: list[int]
) -> None:
    assert saved_iterations(monkeypatch, tmp_path, minutes, save_seconds, every) == saved


@pytest.mark.parametrize("first_says", [True, False])
def test_the_first_process_decides(monkeypatch: pytest.MonkeyPatch, first_says: bool) -> None:
    """Whatever this one's clock says: all of them take part in a save."""
    saved: list[Any] = []
    monkeypatch.setattr(RunCheckpoint, "save", lambda self, trainer: saved.append(trainer))
    monkeypatch.setattr(RunCheckpoint, "clock", staticmethod(lambda: 0.0 if first_says else 1e6))
    strategy = SimpleNamespace(broadcast=lambda own: first_says)
    trainer: Any = SimpleNamespace(should_stop=False, strategy=strategy, loggers=(), global_step=2)
    module: Any = SimpleNamespace(iteration=2)
    RunCheckpoint(every=0).on_train_batch_end(trainer, module, None, None, 0)
    assert bool(saved) is first_says


def test_a_finished_run_keeps_one_state(run_folder: Path, lit_rlvr: CLI) -> None:
    """Weights and two moments in float32; leftovers of a killed process are removed once there is a new checkpoint."""
    folder = run_folder / "run" / "checkpoints"
    fit(lit_rlvr, "--trainer.max_steps", 1)
    for name in ("step-000002.tmp", "step-000001.old"):
        (folder / name).write_text("half a checkpoint")
    fit(lit_rlvr, "--ckpt_path", "last", "--trainer.max_steps", 2)
    (left,) = folder.iterdir()
    parameters = sum(p.numel() for p in tiny_llama().parameters())
    assert left.name == "step-000002.ckpt" and 12 * parameters < left.stat().st_size < 12 * parameters + 100_000
