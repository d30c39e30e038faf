"""A disk that fills up, really: one line, and with more space the run goes on as if nothing had happened."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_runs import CLI, FIT, assert_same_run, fit, summary, to

from lit_rlvr.run import live

CHECKPOINTS = 2 * 1092  # KiB: the last one stays until the next one is written


@pytest.fixture
def small_disk(run_folder: Path) -> Iterator[Callable[[str], None]]:
    """`small_disk("700k")` makes `run/` a disk of that size, or changes it."""
    run = run_folder / "run"
    run.mkdir()

    def resize(size: str) -> None:
        option = f"{'remount,' if os.path.ismount(run) else ''}size={size}"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", option, "none", str(run)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("this user cannot mount a disk")

    yield resize
    if os.path.ismount(run):
        subprocess.run(["umount", "-l", str(run)], check=True)


def test_the_place_that_is_full_is_named(
    run_folder: Path, lit_rlvr: CLI, small_disk: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizers package raises a plain `Exception`, and a write that fails does not know its file."""
    fit(lit_rlvr, *to("whole"), "--trainer.max_steps", 1)
    small_disk("16k")
    exported = lit_rlvr("export", "whole", "--to", "run/exported")
    assert exported.refusal == "lit-rlvr: error: run/exported cannot be written: No space left on device"
    assert os.listdir("run") == []
    monkeypatch.setenv("LIT_RLVR_CACHE", "run/cache")
    lit_rlvr(
        "fit",
        "--config",
        "smoke/sums",
        *to("sums"),
        status=2,
        says="cannot be written: No space left on device; set LIT_RLVR_CACHE to",
    )
    Path("rows.jsonl").write_text('{"id": "q", "prompt": "1 + 1", "answer": "2"}\n')
    Path("given.jsonl").write_text('{"id": "q", "completion": "%s2"}\n' % ("x" * 100_000))
    judged = lit_rlvr("evaluate", "--completions", "given.jsonl", "--suite", "rows.jsonl", "--out", "run/judged")
    assert judged.refusal.endswith("error: --out: run/judged cannot be written: No space left on device")


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [CHECKPOINTS + 12, 700])
def test_a_run_on_a_full_disk(
    run_folder: Path,
    lit_rlvr: CLI,
    small_disk: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    kilobytes: int,
) -> None:
    """Full with the first checkpoint, or the second one."""
    monkeypatch.setattr(live, "WRITE_SECONDS", 1000.0)  # else it depends on the time which file is the first not to fit
    fit(lit_rlvr, *to("whole"))
    small_disk(f"{kilobytes}k")
    refusal = lit_rlvr(*FIT, "--checkpoint.every", 1, "--overwrite", "true").refusal
    assert "cannot be written" in refusal and "No space left on device" in refusal
    left = list((run_folder / "run" / "checkpoints").glob("*.ckpt"))
    assert len(left) == (kilobytes > 1200)
    small_disk("20m")
    begun = ["--ckpt_path", "last"] if (run_folder / "run" / "config.yaml").exists() else []
    fit(lit_rlvr, "--checkpoint.every", 1, *begun)
    resumed = summary(run_folder / "run")["resumed_from_step"]
    assert (resumed > 0) is bool(left)
    assert_same_run(run_folder / "run", run_folder / "whole", resumed)
