"""One run at a time in a folder; a lock goes with the process that held it, however it ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import CLI, FIT, fit

HOLD = """
import os, pathlib, sys, time
from lit_rlvr.run.folder import locked
with locked(pathlib.Path("run"), "--out"):
    child = os.fork()
    if child == 0:
        time.sleep(600)
    print(child, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_second_run_is_refused_and_a_killed_one_does_not_stand_in_the_way(run_folder: Path, lit_rlvr: CLI) -> None:
    (run_folder / "run").mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=run_folder
    )
    assert other.stdout is not None
    child = int(other.stdout.readline())
    try:
        in_use = f"another run is using run (process {other.pid} on "
        assert in_use in lit_rlvr(*FIT, "--trainer.max_steps", 1).refusal
        assert not (run_folder / "run" / "metrics.csv").exists()
        Path("suite.jsonl").write_text('{"id": "q", "prompt": "1 + 1", "answer": "2"}\n')
        evaluated = lit_rlvr("evaluate", "--completions", "suite.jsonl", "--suite", "suite.jsonl", "--out", "run")
        assert f"--out: {in_use}" in evaluated.err
        other.kill()
        other.wait()
        fit(lit_rlvr, "--trainer.max_steps", 1)  # though a child of it lives
    finally:
        other.kill()
        os.kill(child, signal.SIGKILL)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the thread of TensorBoard
def test_a_folder_that_is_moved_during_the_run_is_named(run_folder: Path, lit_rlvr: CLI) -> None:
    moves = "def on_train_batch_start(self, trainer, *_): trainer.global_step and os.rename('run', 'moved')"
    (run_folder / "mover.py").write_text(
        f"import os\nfrom lightning.pytorch import Callback\nclass Moves(Callback):\n    {moves}\n"
    )
    lit_rlvr(
        *FIT,
        "--trainer.callbacks",
        "mover.Moves",
        "--checkpoint.every",
        1,
        status=2,
        says="run was moved or deleted while this run used it; resume the run where",
    )
    fit(lit_rlvr, "--trainer.default_root_dir", "moved", "--ckpt_path", "last")
