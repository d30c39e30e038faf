"""Signals: a run stops after the iteration in progress, with everything saved, and goes on exactly."""

import os
import signal
import sys
import termios
import time
from pathlib import Path
from typing import IO, Any

import pytest
import tiny_rewards
from tiny_runs import (
    CLI,
    FIT,
    assert_same_run,
    fit,
    metrics,
    start_two,
    summary,
    to,
)

from lit_rlvr.run.stop import StopOnSignal

DDP = ("--trainer.strategy", "ddp", "--trainer.devices", "2")


def is_open(terminal: IO[str]) -> bool:
    try:
        return bool(termios.tcgetattr(terminal))
    except termios.error:
        return False


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)]
)
def test_a_signal_stops_after_the_iteration_and_the_run_goes_on_exactly(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    fit(lit_rlvr, *to("whole"))
    master, slave = os.openpty()
    calls = 0

    def interrupted(completion: Any, sample: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 * 16 + 2 * 20 + 5:  # after two validations, inside the fourth iteration
            if number == signal.SIGHUP:  # the terminal is gone; a shell passes on what the kernel sends as well
                os.close(master)
                while is_open(terminal):  # a process that was just forked may still hold the other end
                    time.sleep(0.01)
                os.kill(os.getpid(), number)
                time.sleep(0.2)
            os.kill(os.getpid(), number)
        return first_token(completion, sample)

    first_token = tiny_rewards.first_token
    monkeypatch.setattr(tiny_rewards, "first_token", interrupted)
    interrupted.__name__ = "first_token"
    ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the tests themselves ignore it
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as closed:
        if number == signal.SIGHUP:
            closed.setattr(sys, "stderr", terminal)
        result = fit(lit_rlvr, *to("parts"), status=status)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    signal.signal(signal.SIGHUP, ignored)
    assert ("--ckpt_path last" in result.err or number == signal.SIGHUP) and "Traceback" not in result.err
    stopped = summary(run_folder / "parts")
    assert stopped["steps"] == 4 and signal.Signals(number).name in stopped["stopped"]
    assert stopped["accuracy_after"] is not None and stopped["accuracy_after_step"] == 3
    assert (run_folder / "parts" / "checkpoints" / "step-000004.ckpt").is_file()
    fit(lit_rlvr, *to("parts"), "--ckpt_path", "last")
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=4)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143)])
def test_a_second_signal_stops_at_once(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    """In the middle of an iteration: the last checkpoint is the one to go on from."""
    fit(lit_rlvr, *to("whole"))
    first_token, calls = tiny_rewards.first_token, 0

    def interrupted(completion: Any, sample: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (2 * 16 + 20 + 5, 2 * 16 + 20 + 8):
            os.kill(os.getpid(), number)
            time.sleep(0.2)  # the main thread takes notice: two at once would count as one
        return first_token(completion, sample)

    monkeypatch.setattr(tiny_rewards, "first_token", interrupted)
    interrupted.__name__ = "first_token"
    assert "Traceback" not in fit(lit_rlvr, *to("parts"), "--checkpoint.every", 1, status=status).err
    assert summary(run_folder / "parts")["stopped"] == f"stopped at once by {signal.Signals(number).name}"
    fit(lit_rlvr, *to("parts"), "--ckpt_path", "last")
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=2)


def test_nohup_keeps_a_run_going_when_the_terminal_is_closed() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        StopOnSignal().on_train_start(None, None)  # type: ignore[arg-type]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


# ---- two processes ----


@pytest.mark.slow
def test_a_signal_stops_all_processes_after_the_same_iteration(run_folder: Path) -> None:
    process, _ = start_two([*FIT, *DDP, "--trainer.max_steps", "5000", "--rollout.validate_every_rollouts", "2500"])
    samples, deadline = run_folder / "run" / "completions.jsonl", time.monotonic() + 400
    while not (samples.is_file() and samples.read_text().count('"sample": 0,') > 6):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # to the first process alone
    err = "".join(process.communicate())
    assert process.returncode == 130 and "Traceback" not in err, err
    steps = summary(run_folder / "run")["steps"]
    assert (run_folder / "run" / "checkpoints" / f"step-{steps:06d}.ckpt").is_file()


# ---- others: belong in test_two_processes.py, test_fit_cli.py ----


@pytest.mark.slow
def test_accuracies_of_a_run_that_ends_with_its_epochs(run_folder: Path, lit_rlvr: CLI) -> None:
    """`accuracy_after` is that of the final weights, `accuracy_before` that of the first, also after a resume."""
    fit(lit_rlvr, "--trainer.max_steps", -1, "--trainer.max_epochs", 1)
    first, row = summary(run_folder / "run"), metrics(run_folder / "run")[-1]
    fit(lit_rlvr, "--trainer.max_steps", -1, "--trainer.max_epochs", 2, "--ckpt_path", "last")
    assert summary(run_folder / "run")["accuracy_before"] == first["accuracy_before"]
    assert float(metrics(run_folder / "run")[0]["val/accuracy"]) == first["accuracy_before"]
    assert row["step"] == "4" and row["val/accuracy"] != ""


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        (
            "accumulate_grad_batches",
            2,
            "use model.init_args.compute.tokens_per_microbatch (memory) or data.init_args.prompts",
        ),
        ("gradient_clip_val", 2, "use model.init_args.optim.max_grad_norm"),
        ("gradient_clip_algorithm", "value", "use model.init_args.optim.max_grad_norm"),
    ],
)
def test_trainer_options_that_the_algorithm_takes_over_are_refused(
    run_folder: Path, lit_rlvr: CLI, option: str, value: Any, said: str
) -> None:
    """Also in a dry run."""
    for dry in ([], ["--dry-run"]):
        result = lit_rlvr(*FIT, f"--trainer.{option}", value, "--trainer.max_steps", 1, *dry)
        assert f"error: trainer.{option}: " in result.refusal and said in result.refusal


def test_the_default_correction_is_for_the_precision_too(run_folder: Path, lit_rlvr: CLI) -> None:
    """The HF engine decodes in fp32 while bf16-mixed scores in bf16: 0.012 nats a token, so not `none`."""
    result = fit(lit_rlvr, "--trainer.precision", "bf16-mixed", "--trainer.max_steps", 1)
    difference = float(metrics(run_folder / "run")[1]["train/engine_difference"])
    assert difference > 1e-4 and "importance correction none" not in result.err
