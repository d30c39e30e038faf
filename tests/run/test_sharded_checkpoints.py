"""Checkpoints of sharded weights: on any number of processes and with any strategy a run goes on from them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tiny_runs import (
    CONSOLE_SCRIPT,
    FIT,
    STRATEGIES,
    assert_same_run,
    child_environment,
    fit,
    in_two_processes,
    launch,
    metrics,
    summary,
    to,
)

from lit_rlvr.distributed.checkpoints import (
    MOMENTS,
    REFERENCE,
    REST,
    WEIGHTS,
    is_sharded,
    last_checkpoint,
    list_checkpoints,
    read_checkpoint,
    read_whole,
)
from lit_rlvr.run.checkpoint import link, publish, remove

CLI = Callable[..., Any]
DDP, FSDP2 = STRATEGIES["ddp"], STRATEGIES["fsdp2"]
ALONE = ("--trainer.devices", "1")
OFFLOAD = ("--trainer.strategy", "{class_path: tiny_strategies.OffloadedHere}")
LAST = ("--ckpt_path", "last")
LORA = ("--model.init_args.lora.rank", "4")
AAPO = ("--model", "AAPO", "--model.init_args.reference_update_every", "2")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(last_checkpoint(run))["state_dict"]


def assert_same_end(run: Path, whole: Path) -> None:
    """Weights to 1e-6: after three more steps of AdamW that is its moments too."""
    ours, theirs = weights(run), weights(whole)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) <= 1e-6
    assert summary(run)["resumed_from_step"] == 3


@pytest.mark.slow
def test_a_run_goes_on_with_another_strategy(run_folder: Path, lit_rlvr: CLI) -> None:
    gentle = ("--model.init_args.lr", "1e-4")  # so that rounding stays rounding
    begin = (*gentle, "--trainer.max_steps", "3")
    fit(lit_rlvr, *gentle, *to("whole"))
    fit(lit_rlvr, *begin, *to("file-to-shards"))
    in_two_processes(
        run_folder,
        [*FIT, *FSDP2, *begin, *to("shards-to-ddp")],
        [*FIT, *DDP, *gentle, *to("shards-to-ddp"), *LAST],
        [*FIT, *FSDP2, *gentle, *to("file-to-shards"), *LAST],
        [*FIT, *FSDP2, *begin, *to("shards-to-one")],
    )
    fit(lit_rlvr, *gentle, *to("shards-to-one"), *LAST)
    names = ("shards-to-ddp", "file-to-shards", "shards-to-one")
    for name in names:
        assert_same_end(run_folder / name, run_folder / "whole")
    assert [name for name in names if is_sharded(last_checkpoint(run_folder / name))] == ["file-to-shards"]


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_processes(run_folder: Path, lit_rlvr: CLI) -> None:
    gentle = ("--model.init_args.lr", "1e-4")
    fit(lit_rlvr, *gentle, *to("whole"))
    in_two_processes(run_folder, [*FIT, *FSDP2, *gentle, "--trainer.max_steps", "3", *to("fewer")])
    fewer = launch([*FIT, *FSDP2, *ALONE, *gentle, *to("fewer"), *LAST], run_folder)
    assert fewer.returncode == 0, fewer.stderr
    assert_same_end(run_folder / "fewer", run_folder / "whole")
    assert is_sharded(last_checkpoint(run_folder / "fewer"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [LORA, OFFLOAD],
    ids=["lora", "offload"],
)
def test_a_run_goes_on_exactly(run_folder: Path, options: tuple[str, ...]) -> None:
    run = [*FIT, *FSDP2, *options]
    in_two_processes(
        run_folder,
        [*run, *to("whole")],
        [*run, *to("parts"), "--trainer.max_steps", "3", "--checkpoint.best", "val/accuracy"],
        [*run, *to("parts"), *LAST, "--checkpoint.best", "val/accuracy"],
    )
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=3)
    assert is_sharded(run_folder / "parts" / "checkpoints" / "best.ckpt")
    if options == LORA:
        assert all(".lora_" in name for name in weights(run_folder / "parts"))


def write_as_before(checkpoint: Path) -> None:
    """Rewrite a checkpoint as former versions did: the reference whole in meta.pt."""
    parts = {part: read_whole(checkpoint, part) for part in (WEIGHTS, MOMENTS, REFERENCE)}
    rest = torch.load(checkpoint / REST, weights_only=True)
    rest["rlvr"]["reference"]["weights"] = parts.pop(REFERENCE)
    remove(checkpoint)
    dcp.save(parts, checkpoint_id=checkpoint, no_dist=True)
    torch.save(rest, checkpoint / REST)


@pytest.mark.slow
def test_a_renewed_reference_is_saved_in_shards(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    gentle = ("--model.init_args.lr", "1e-4")
    run = [*FIT, *FSDP2, *AAPO, *gentle]
    every = ("--checkpoint.every", "1", "--checkpoint.keep", "3")
    in_two_processes(run_folder, [*run, *to("whole")], [*run, *to("parts"), *every, "--trainer.max_steps", "3"])
    for copy in ("before", "alone"):
        shutil.copytree(run_folder / "parts", run_folder / copy)
    _, second, third = list_checkpoints(run_folder / "parts")
    reference, policy = read_whole(third, REFERENCE), read_whole(second, WEIGHTS)
    assert {f"policy.{name}" for name in reference} == set(policy)
    assert all(torch.equal(reference[name], policy[f"policy.{name}"]) for name in reference)
    size = sum(tensor.nbytes for tensor in reference.values())
    assert (third / REST).stat().st_size < size / 5
    write_as_before(last_checkpoint(run_folder / "before"))
    assert (last_checkpoint(run_folder / "before") / REST).stat().st_size > size
    assert lit_rlvr("export", "parts", "--to", "exported").status == 0
    monkeypatch.setenv("LIT_RLVR_CACHE", str(run_folder / "cache"))
    (run_folder / "sums.jsonl").write_text('{"problem": "1 + 1", "answer": "2"}\n')
    asked = ("--suite", "sums.jsonl", "--engine", "hf", "--samples", 0, "--max_tokens", 4, "--out", "out")
    evaluated = lit_rlvr("evaluate", "--model", "parts", *asked)
    assert evaluated.status == 0, evaluated.err

    in_two_processes(run_folder, [*run, *to("parts"), *LAST], [*run, *to("before"), *LAST])
    fit(lit_rlvr, *AAPO, *gentle, *to("alone"), *LAST)
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=3)
    assert_same_run(run_folder / "before", run_folder / "whole", resumed=3)
    assert_same_end(run_folder / "alone", run_folder / "whole")


@pytest.mark.slow
def test_what_a_killed_write_leaves_is_in_nobodys_way(run_folder: Path) -> None:
    run = [*FIT, *FSDP2, *to("run")]
    in_two_processes(run_folder, [*run, "--trainer.max_steps", "3"])
    half = run_folder / "run" / "checkpoints" / "step-000006.tmp"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half of it")
    in_two_processes(run_folder, [*run, *LAST], [*run, "--overwrite", "true", "--trainer.max_steps", "1"])
    assert [path.name for path in list_checkpoints(run_folder / "run")] == ["step-000001.ckpt"]
    assert not half.exists()


@pytest.mark.slow
def test_a_foreign_checkpoint_is_one_line(run_folder: Path, untied_model_folder: Path) -> None:
    in_two_processes(run_folder, [*FIT, *FSDP2, *to("run"), "--trainer.max_steps", "1"])
    options = (*ALONE, *to("run"), *LAST, "--model.init_args.model", str(untied_model_folder))
    other = launch([*FIT, *FSDP2, *options], run_folder)
    assert other.returncode == 2 and "Traceback" not in other.stderr, other.stderr
    assert "its run had model of LlamaForCausalLM" in other.stderr


@pytest.mark.slow
def test_a_torn_checkpoint_is_one_line(run_folder: Path, lit_rlvr: CLI) -> None:
    in_two_processes(run_folder, [*FIT, *FSDP2, *to("run"), "--trainer.max_steps", "1"])
    share = last_checkpoint(run_folder / "run") / "__1_0.distcp"
    share.write_bytes(share.read_bytes()[:1000])
    torn = fit(lit_rlvr, *to("run"), *LAST, status=2)
    assert "is not a readable checkpoint" in torn.err and "Traceback" not in torn.err


def test_names_of_folders(tmp_path: Path) -> None:
    """Published over an older one of the same name, linked, removed."""
    for name, content in (("a.tmp", "new"), ("a.ckpt", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.pt").write_text(content)
    publish(tmp_path / "a.tmp", tmp_path / "a.ckpt")
    link(tmp_path / "a.ckpt", tmp_path / "best.ckpt")
    remove(tmp_path / "a.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    assert (tmp_path / "best.ckpt" / "meta.pt").read_text() == "new"


@pytest.mark.slow
def test_killed_at_any_moment_a_run_goes_on_exactly(run_folder: Path) -> None:
    run = [*FIT, *FSDP2, "--checkpoint.every", "1", "--trainer.max_steps", "40", "--trainer.val_check_interval", "40"]
    in_two_processes(run_folder, [*run, *to("whole")])
    checkpoints = run_folder / "run" / "checkpoints"
    resume: tuple[str, ...] = ()
    for kill in range(2):
        process = subprocess.Popen(
            [CONSOLE_SCRIPT, *run, *resume], env=child_environment(), stderr=subprocess.PIPE, start_new_session=True
        )
        wanted, deadline = f"step-{16 * (kill + 1):06d}", time.monotonic() + 240
        while not any(path.name > wanted for path in checkpoints.glob("step-*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(0.004 * kill)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        resume = LAST
    result = launch([*run, *LAST], run_folder)
    assert result.returncode == 0, result.stderr
    last = summary(run_folder / "run")
    assert last["weights_sha256"] == summary(run_folder / "whole")["weights_sha256"] and last["resumed_from_step"] > 30
    assert metrics(run_folder / "run") == metrics(run_folder / "whole")
