"""Whole runs through the command line, small enough for a second each."""

import csv
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forked import COMMANDS, SECOND_RANKS, Forked
from tiny_rewards import judged_as_is

from lit_rlvr.distributed.checkpoints import last_checkpoint, read_checkpoint

TESTS = Path(__file__).parent
CONSOLE_SCRIPT = Path(sys.executable).with_name("lit-rlvr")
CLI = Callable[..., Any]
"""Type of the fixture `lit_rlvr`, which runs a command line and returns its `Result`."""
FIT = ("fit", "--config", "tiny.yaml")
STRATEGIES = {name: ("--config", f"configs/strategy/{name}_cpu.yaml") for name in ("ddp", "fsdp2")}
"""Strategy -> the arguments that make two processes of a command."""
UNTIMED = ("time/", "rollout/tokens_per_second")


def tiny_config(model_folder: Path) -> dict[str, Any]:
    """36 sums of which 16 are trained on: four iterations an epoch, so that six cross its end."""
    return {
        "seed_everything": 0,
        "model": {"class_path": "GRPO", "init_args": {"model": str(model_folder), "lr": 1e-3}},
        "data": {
            "class_path": "Arithmetic",
            "init_args": {"prompts_per_rollout": 4, "high": 6, "held_out": 20, "evaluation": {"prompts_per_batch": 8}},
        },
        "rollout": {
            "group_size": 4,
            "engine": "hf",
            "sampling": {"max_tokens": 8},
            "evaluation": {"sampling": {"temperature": 0.0, "max_tokens": 8}},
            "validate_every_rollouts": 3,
            "rewards": [judged_as_is("first_token")],
        },
        "trainer": {
            "max_steps": 6,
            "precision": "32-true",
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": "run",
        },
        "run": {"show_every": 0},
    }


def pictures_config(vlm_folder: Path, run: Path) -> dict[str, Any]:
    """Two iterations on drawn pictures, without validation."""
    return {
        "model": {"class_path": "GRPO", "init_args": {"model": str(vlm_folder)}},
        "data": {"class_path": "LesionCount", "init_args": {"pictures": 8, "held_out": 0, "prompts_per_rollout": 2}},
        "rollout": {"group_size": 2, "engine": "hf", "sampling": {"max_tokens": 4}},
        "trainer": {
            "max_steps": 2,
            "precision": "32-true",
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": str(run),
        },
        "run": {"show_every": 0},
    }


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Write a config as YAML; return its path."""
    path.write_text(yaml.safe_dump(config))
    return path


def summary(run: Path) -> dict[str, Any]:
    """Return the contents of summary.json."""
    return json.loads((run / "summary.json").read_text())


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without what depends on the clock."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith(UNTIMED)} for row in csv.DictReader(file)]


def completions(run: Path) -> list[dict[str, Any]]:
    """Return the lines of completions.jsonl."""
    return [json.loads(line) for line in (run / "completions.jsonl").read_text().split("\n")[:-1]]


def questions(run: Path) -> list[dict[str, Any]]:
    """The lines of validation.jsonl; none without a validation set."""
    path = run / "validation.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.is_file() else []


def child_environment() -> dict[str, str]:
    """As a user's shell, with the tests' rewards importable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "LOCAL_", "MASTER_", "NODE_", "WORLD_"))}
    return kept | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])}


def port_for_later() -> int:
    """A free port that no other process gets by chance before it is used, which systems give out from 32,768 on."""
    while not is_free(port := random.SystemRandom().randrange(20_000, 32_000)):
        pass
    return port


def is_free(port: int) -> bool:
    """Tell whether a server may listen there."""
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def start(arguments: Sequence[Any], cwd: Path | None = None, **options: Any) -> Forked:
    """A command in a process of its own, without the seconds that imports take."""
    return Forked(arguments, None, child_environment(), cwd=cwd, **options)


def launch(arguments: Sequence[Any], cwd: Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Start a command and wait for its end."""
    process = start(arguments, cwd)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess([*arguments], process.wait(), out, err)


def start_two(arguments: Sequence[Any], cwd: Path | None = None, **options: Any) -> list[Forked]:
    """A command in two processes as of torchrun, in one process group."""
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1, "ROLE_WORLD_SIZE": 2,
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port_for_later(), "TORCHELASTIC_RUN_ID": "none",
              "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0}  # fmt: skip
    ranks: list[Forked] = []
    for rank in range(2):
        own = {f"{name}RANK": rank for name in ("", "LOCAL_", "ROLE_")}
        variables = child_environment() | {name: str(value) for name, value in (shared | own).items()}
        group = ranks[0].pid if ranks else 0
        server = SECOND_RANKS if ranks else COMMANDS
        ranks.append(Forked(arguments, None, variables, cwd=cwd, group=group, server=server, **options))
    return ranks


def in_two_processes(folder: Path, *commands: Sequence[Any]) -> str:
    """Several `lit-rlvr` commands, one after the other, each in two processes as of torchrun; what they said."""
    said = ""
    for command in commands:
        ranks = start_two(command, folder)
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            time.sleep(0.05)
        status = [rank.poll() for rank in ranks]
        for rank in ranks:
            rank.terminate()
        said += "".join(part for rank in ranks for part in rank.communicate())
        assert status == [0, 0], f"{' '.join(map(str, command))}: {status}\n{said}"
    return said


def assert_same_run(run: Path, whole: Path, resumed: int) -> None:
    """A run that went on after a stop ended where the uninterrupted one did, and logged the same."""
    ours, theirs = summary(run), summary(whole)
    assert (ours["resumed_from_step"], theirs["resumed_from_step"]) == (resumed, 0)
    for key in ("weights_sha256", "steps", "iterations", "accuracy_before", "accuracy_after"):
        assert ours[key] == theirs[key], key
    for row, wanted in zip(metrics(run), metrics(whole), strict=True):
        assert row == wanted, row["step"]
    assert completions(run) == completions(whole)
    assert questions(run) == questions(whole)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the last checkpoint."""
    return read_checkpoint(last_checkpoint(run))["state_dict"]


def apart(ours: Path, theirs: Path) -> float:
    """The largest difference of the last weights of two runs."""
    got, wanted = weights(ours), weights(theirs)
    assert got.keys() == wanted.keys()
    # Where it is not rotated, a bias of keys cancels in the softmax, and AdamW scales up the rounding of its gradient.
    compared = [name for name in wanted if not name.endswith("k_proj.bias")]
    return max(float((got[name] - wanted[name]).abs().max()) for name in compared)


NOISE = ("train/noise_scale", "train/step_prompts")
"""Metrics that are logged where a step has several micro-batches or ranks."""


def assert_same_training(ours: Path, theirs: Path, tolerance: float = 1e-6, without: tuple[str, ...] = NOISE) -> None:
    """The same weights to 1e-6 and the same metrics, adaptive statistics among them, to 1e-4; `-s` shows how close.

    Args:
        ours, theirs: folders of two runs.
        tolerance: of the weights.
        without: metrics that may differ: the noise scale is estimated from micro-batches, which runs may cut otherwise.
    """
    worst = apart(ours, theirs)
    assert worst <= tolerance, worst
    rows, expected = (
        [{name: value for name, value in row.items() if name not in without} for row in metrics(run)]
        for run in (ours, theirs)
    )
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    differ = [
        abs(float(row[name]) - float(value)) / max(abs(float(value)), 1e-2)
        for row, other in zip(rows, expected, strict=True)
        for name, value in other.items()
        if value and row[name]
    ]
    print(
        f"{ours.name} as {theirs.parent.name}/{theirs.name}: weights {worst:.1e}, metrics {max(differ):.1e} (relative)"
    )
    for row, other in zip(rows, expected, strict=True):
        for name, value in other.items():
            near = "" if value == "" else pytest.approx(float(value), rel=1e-4, abs=1e-6)
            assert (row[name] if row[name] == "" else float(row[name])) == near, (row["step"], name)


def fit_in_shards(folder: Path, model: Path, *more: str) -> None:
    """Six steps of a model on one process (`one`), with shards on two (`whole`), and these in two parts (`parts`)."""
    write_config(folder / "tiny.yaml", tiny_config(model))
    options = ("--model.init_args.lr", "1e-4", *more)
    alone = launch([*FIT, *options, *to("one")], folder)
    assert alone.returncode == 0, alone.stderr
    sharded = [*FIT, *STRATEGIES["fsdp2"], *options]
    begun, went_on = ("--trainer.max_steps", "3"), ("--ckpt_path", "last")
    commands = [[*sharded, *to("whole")], [*sharded, *begun, *to("parts")], [*sharded, *to("parts"), *went_on]]
    in_two_processes(folder, *commands)


def fit(lit_rlvr: Callable[..., Any], *more: Any, status: int = 0, says: str = "") -> Any:
    """`lit-rlvr fit --config tiny.yaml` with more arguments; its status and its errors are the expected ones."""
    return lit_rlvr(*FIT, *more, status=status, says=says)


def to(root: str) -> tuple[str, str]:
    """Return the option that makes `root` the run folder."""
    return "--trainer.default_root_dir", root
