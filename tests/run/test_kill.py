"""Ended at any moment, by any signal: the resumed run is the uninterrupted one."""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import CLI, FIT, assert_same_run, fit, start, summary, to

from lit_rlvr.run.outputs import _drop_after
from lit_rlvr.training.module import RLVRModule

EVERY_STEP = ("--checkpoint.every", "1")
RESUME = ("--ckpt_path", "last")


def samples(run: Path) -> int:
    """How many groups were written to completions.jsonl so far; two a step."""
    path = run / "completions.jsonl"
    return path.read_bytes().count(b'"sample": 0,') if path.is_file() else 0


def end_at_random(arguments: list[str], run: Path, draw: random.Random) -> str:
    """Start a run and end it by some signal, while it starts or a moment after it has gone on; its last words."""
    number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    before, starting, delay = samples(run), draw.random() < 0.3, draw.uniform(0, 0.5)
    process = start(arguments)
    deadline = time.monotonic() + (draw.uniform(0.1, 6) if starting else 180)
    while time.monotonic() < deadline and (starting or abs(samples(run) - before) < 2):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(number)
    _, err = process.communicate(timeout=600)
    assert process.returncode in (-number, 128 + number), err
    assert "Traceback" not in err, err
    return err


@pytest.mark.slow
def test_ended_at_random_moments_a_run_goes_on_exactly(run_folder: Path, lit_rlvr: CLI) -> None:
    options = (*EVERY_STEP, "--trainer.max_steps", "90", "--rollout.validate_every_rollouts", "45")
    fit(lit_rlvr, *to("whole"), *options)
    draw, run = random.Random(0), run_folder / "run"
    for _ in range(3):
        resume = RESUME if (run / "config.yaml").is_file() else ("--overwrite", "true")
        end_at_random([*FIT, *options, *resume], run, draw)
    fit(lit_rlvr, *options, *RESUME)
    resumed = summary(run)["resumed_from_step"]
    assert 0 < resumed < 90
    assert_same_run(run, run_folder / "whole", resumed)


@pytest.mark.exhaustive
def test_ended_at_random_moments_a_recorded_run_and_its_replay_end_alike(run_folder: Path, lit_rlvr: CLI) -> None:
    options = (*EVERY_STEP, "--trainer.max_steps", "80", "--trainer.limit_val_batches", "0")
    ahead = ("--rollout.staleness", "1", "--rollout.engine", "tiny_engines.Copying")
    draw = random.Random(1)
    for name, more in (("run", ahead), ("again", (*ahead, "--rollouts-from", "run"))):
        for _ in range(2):
            resume = RESUME if (run_folder / name / "config.yaml").is_file() else ("--overwrite", "true")
            end_at_random([*FIT, *options, *more, *to(name), *resume], run_folder / name, draw)
        fit(lit_rlvr, *options, *more, *to(name), *RESUME)
        assert 0 < summary(run_folder / name)["resumed_from_step"] < 80
    assert summary(run_folder / "again")["weights_sha256"] == summary(run_folder / "run")["weights_sha256"]


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written_the_one_before_is_there(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(lit_rlvr, *to("uninterrupted"))
    for moment, newer, resumed in (("torn", "tmp", 3), ("whole", "tmp", 3), ("named", "ckpt", 4)):
        monkeypatch.setenv("KILLED_AT", f"{moment} 4")
        killed = start([*FIT, *EVERY_STEP, *to(moment)], first="tiny_killed")
        assert killed.wait() == -signal.SIGKILL, killed.communicate()
        checkpoints = run_folder / moment / "checkpoints"
        assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000003.ckpt", f"step-000004.{newer}"]
        fit(lit_rlvr, *EVERY_STEP, *to(moment), *RESUME)
        assert_same_run(run_folder / moment, run_folder / "uninterrupted", resumed)
        assert [path.name for path in checkpoints.iterdir()] == ["step-000006.ckpt"]


@pytest.mark.slow
def test_ended_in_its_last_validation_a_run_is_completed(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = ("--trainer.max_steps", -1, "--budget.samples", 96)
    fit(lit_rlvr, *to("whole"))
    validated = RLVRModule.on_validation_epoch_end

    def end_after(self: RLVRModule) -> None:
        validated(self)
        if self.updates == 6:
            raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(RLVRModule, "on_validation_epoch_end", end_after)
        assert "killed here" in lit_rlvr(*FIT, *to("parts"), *end).err
    assert not (run_folder / "parts" / "summary.json").exists()
    fit(lit_rlvr, *to("parts"), *end, "--ckpt_path", "last")
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=6)
    written = (run_folder / "parts" / "summary.json").stat().st_mtime_ns
    fit(lit_rlvr, *to("parts"), *end, "--ckpt_path", "last")
    assert (run_folder / "parts" / "summary.json").stat().st_mtime_ns == written, "it was complete"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "step"),
    [((), 3), (("--rollout.validate_every_rollouts", "null"), 4)],
    ids=["steps", "epochs"],
)
def test_a_validation_in_which_a_run_ended_is_made_up(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch, every: tuple[Any, ...], step: int
) -> None:
    """The checkpoint is written before it, so its results would be missing."""
    fit(lit_rlvr, *to("whole"), *EVERY_STEP, *every)
    validated = RLVRModule.on_validation_epoch_end

    def end_before(self: RLVRModule) -> None:
        if self.updates == step:
            raise RuntimeError("killed here")
        validated(self)

    with monkeypatch.context() as patch:
        patch.setattr(RLVRModule, "on_validation_epoch_end", end_before)
        assert "killed here" in lit_rlvr(*FIT, *to("parts"), *EVERY_STEP, *every).err
    fit(lit_rlvr, *to("parts"), *EVERY_STEP, *every, "--ckpt_path", "last")
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=step)


def test_records_after_a_checkpoint_and_a_torn_one_are_dropped(tmp_path: Path) -> None:
    """Completions may hold what Python takes for the end of a line."""
    path = tmp_path / "completions.jsonl"
    whole = ['{"step": 1, "completion": "a\u2028b\x85c"}\n', '{"step": 2, "completion": ""}\n']
    path.write_bytes("".join([*whole, '{"step": 3}\n', '{"step": 3, "completion": "\u2028']).encode()[:-1])
    _drop_after(path, 2)
    assert path.read_text() == "".join(whole)


@pytest.mark.slow
def test_ended_before_the_first_checkpoint_a_run_goes_on_from_its_beginning(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, *to("whole"))
    fit(lit_rlvr, "--trainer.max_steps", 3)
    shutil.rmtree(run_folder / "run" / "checkpoints")
    fit(lit_rlvr, *RESUME, status=2, says="run/checkpoints has no checkpoint")
    (run_folder / "run" / "summary.json").unlink()
    fit(lit_rlvr, *RESUME, says="run has no checkpoint yet, the run starts from the beginning")
    assert_same_run(run_folder / "run", run_folder / "whole", resumed=0)


def test_killed_before_it_wrote_anything_a_run_starts_over(run_folder: Path, lit_rlvr: CLI) -> None:
    """Only its lock is left."""
    (run_folder / "run").mkdir()
    (run_folder / "run" / ".lock").write_text("process 1 on another")
    fit(
        lit_rlvr, *RESUME, "--trainer.max_steps", 1, says="run has no checkpoint yet, the run starts from the beginning"
    )
    assert summary(run_folder / "run")["steps"] == 1


# ---- checkpoints that cannot be used ----------------------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    made = {
        "torn": content[:-1000],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }
    path.write_bytes(made[how])


@pytest.mark.slow
def test_a_spoilt_checkpoint_is_named_and_passed_over_or_refused(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, *EVERY_STEP, "--checkpoint.keep", 3)
    before, newest = summary(run_folder / "run"), run_folder / "run/checkpoints/step-000006.ckpt"
    spoil(newest, "flipped")
    assert "step-000006.ckpt" in lit_rlvr(*FIT, "--ckpt_path", newest).refusal
    result = fit(lit_rlvr, *RESUME, "--checkpoint.keep", 3)
    assert "step-000006.ckpt" in result.err and "passed over" in result.err
    after = summary(run_folder / "run")
    assert after["resumed_from_step"] == 5 and after["weights_sha256"] == before["weights_sha256"]


@pytest.mark.slow
def test_without_a_good_checkpoint_the_newest_is_named(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, *EVERY_STEP, "--checkpoint.keep", 2)
    for path in (run_folder / "run/checkpoints").iterdir():
        spoil(path, "torn")
    lit_rlvr(*FIT, *RESUME, status=2, says="lit-rlvr: error: run/checkpoints/step-000005.ckpt is not")
