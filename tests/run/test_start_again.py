"""The loop of docs/faults.md: it starts a run again after what a new process gets over, and ends with the run."""

import os
import re
import time
from pathlib import Path

import psutil
import pytest
from tiny_runs import CONSOLE_SCRIPT, FIT, STRATEGIES, child_environment, summary

from lit_rlvr.common.run_files import read_live

LOOP = re.compile(r"```bash\n(#!/bin/bash.*?)```", re.DOTALL)


@pytest.mark.exhaustive
def test_the_loop_outlives_memory_that_runs_out_and_a_killed_process(run_folder: Path) -> None:
    """Memory runs out in the first step, before there is a checkpoint; later this test kills the second process."""
    found = LOOP.search((Path(__file__).parents[2] / "docs/faults.md").read_text())
    assert found
    (run_folder / "again.sh").write_text(found[1])
    path = f"{Path(CONSOLE_SCRIPT).parent}:{os.environ['PATH']}"
    options = ["--model", "tiny_faults.Faulty", "--model.init_args.compute.tokens_per_microbatch", "160"]
    options += [*STRATEGIES["fsdp2"], "--checkpoint.every", "2", "--trainer.max_steps", "16"]
    with (run_folder / "said").open("w") as said:
        loop = psutil.Popen(
            ["bash", "again.sh", *FIT[1:], *options, "--rollout.validate_every_rollouts", "16"],
            cwd=run_folder,
            env=child_environment() | {"PATH": path, "FAULT": "memory 1 0"},
            stderr=said,
        )
    try:
        deadline = time.monotonic() + 900
        while ((live := read_live(run_folder / "run")) or {"step": 0})["step"] < 6:
            assert loop.poll() is None and time.monotonic() < deadline, (live, (run_folder / "said").read_text())
            time.sleep(0.05)
        second = [child for child in loop.children(recursive=True) if child.environ().get("LOCAL_RANK") == "1"]
        second[0].kill()
        status = loop.wait(timeout=900)
    finally:
        for process in [*loop.children(recursive=True), loop] if loop.is_running() else []:
            process.kill()
    err = (run_folder / "said").read_text()
    assert status == 0 and "Traceback" not in err, err
    assert err.count("an earlier start ran out of memory: at most 80 tokens at once") == 1, err
    assert summary(run_folder / "run")["steps"] == 16 and summary(run_folder / "run")["resumed_from_step"] >= 4
