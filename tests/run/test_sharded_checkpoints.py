"""Checkpoints of sharded weights: on any number of processes and with any strategy a run goes on from them."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import (
    CLI,
    FIT,
    STRATEGIES,
    assert_same_run,
    fit,
    in_two_processes,
    launch,
    metrics,
    start_two,
    summary,
    to,
    weights,
)

from lit_rlvr.common.run_files import list_checkpoints
from lit_rlvr.distributed import fsdp2
from lit_rlvr.distributed.checkpoints import (
    CHECKPOINT_PARTS,
    MOMENTS,
    REFERENCE,
    REST,
    WEIGHTS,
    ShardWriter,
    is_sharded,
    last_checkpoint,
    read_whole,
)
from lit_rlvr.distributed.fsdp2 import FSDP2 as Sharded
from lit_rlvr.engines.process_group import VLLMProcessGroup
from lit_rlvr.errors import UserError
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.training.teachers import Teachers

DDP, FSDP2 = STRATEGIES["ddp"], STRATEGIES["fsdp2"]
OFFLOAD = ("--trainer.strategy", "{class_path: tiny_strategies.OffloadedHere}")
LAST = ("--ckpt_path", "last")
PISSA = ("--model.init_args.lora", "{rank: 4, init: pissa}")
AVERAGE = (
    "--model.init_args.teacher",
    "{ema: 0.3, prompt: {class_path: Demonstration, init_args: {column: solution}}}",
    "--model.init_args.lr",
    "1e-3",
)
AAPO = ("--model", "AAPO", "--model.init_args.kl.reference_update_every", "2")


def assert_same_end(run: Path, whole: Path) -> None:
    """Weights to 1e-6: after three more steps of AdamW that is its moments too."""
    ours, theirs = weights(run), weights(whole)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) <= 1e-6
    assert summary(run)["resumed_from_step"] == 3


@pytest.mark.exhaustive
def test_a_run_goes_on_with_another_strategy_and_with_fewer_processes(run_folder: Path, lit_rlvr: CLI) -> None:
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
    shutil.copytree(run_folder / "shards-to-one", run_folder / "fewer")
    fit(lit_rlvr, *gentle, *to("shards-to-one"), *LAST)
    fewer = launch([*FIT, *FSDP2, "--trainer.devices", "1", *gentle, *to("fewer"), *LAST], run_folder)
    assert fewer.returncode == 0, fewer.stderr
    names = ("shards-to-ddp", "file-to-shards", "shards-to-one", "fewer")
    for name in names:
        assert_same_end(run_folder / name, run_folder / "whole")
    assert [name for name in names if is_sharded(last_checkpoint(run_folder / name))] == ["file-to-shards", "fewer"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((*OFFLOAD, *AVERAGE), id="averaged teacher with offload", marks=pytest.mark.slow),
        pytest.param(PISSA, id="pissa", marks=pytest.mark.exhaustive),
    ],
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
    if options == PISSA:
        assert all(".lora_" in name for name in weights(run_folder / "parts"))


@pytest.mark.exhaustive
def test_a_renewed_reference_is_saved_in_shards(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    gentle = ("--model.init_args.lr", "1e-4")
    run = [*FIT, *FSDP2, *AAPO, *gentle]
    every = ("--checkpoint.every", "1", "--checkpoint.keep", "3")
    in_two_processes(run_folder, [*run, *to("whole")], [*run, *to("parts"), *every, "--trainer.max_steps", "3"])
    shutil.copytree(run_folder / "parts", run_folder / "alone")
    _, second, third = list_checkpoints(run_folder / "parts")
    reference, policy = read_whole(third, REFERENCE), read_whole(second, WEIGHTS)
    assert {f"policy.{name}" for name in reference} == set(policy)
    assert all(torch.equal(reference[name], policy[f"policy.{name}"]) for name in reference)
    size = sum(tensor.nbytes for tensor in reference.values())
    assert (third / REST).stat().st_size < size / 5
    assert lit_rlvr("export", "parts", "--to", "exported").status == 0
    monkeypatch.setenv("LIT_RLVR_CACHE", str(run_folder / "cache"))
    (run_folder / "sums.jsonl").write_text('{"problem": "1 + 1", "answer": "2"}\n')
    asked = ("--suite", "sums.jsonl", "--engine", "hf", "--samples", 0, "--max_tokens", 4, "--out", "out")
    lit_rlvr("evaluate", "--model", "parts", *asked, status=0)

    in_two_processes(run_folder, [*run, *to("parts"), *LAST])
    fit(lit_rlvr, *AAPO, *gentle, *to("alone"), *LAST)
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=3)
    assert_same_end(run_folder / "alone", run_folder / "whole")


@pytest.mark.slow
def test_a_torn_checkpoint_is_one_line(run_folder: Path, lit_rlvr: CLI) -> None:
    in_two_processes(run_folder, [*FIT, *FSDP2, *to("run"), "--trainer.max_steps", "1"])
    share = last_checkpoint(run_folder / "run") / "__1_0.distcp"
    share.write_bytes(share.read_bytes()[:1000])
    fit(lit_rlvr, *to("run"), *LAST, status=2, says="is not a readable checkpoint")


@pytest.mark.exhaustive
def test_killed_at_any_moment_a_run_goes_on_exactly(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a checkpoint is written in the background, before and after it gets its name, and anywhere."""
    run = [*FIT, *FSDP2, "--checkpoint.every", "1", "--trainer.max_steps", "20"]
    run += ["--rollout.validate_every_rollouts", "20"]
    in_two_processes(run_folder, [*run, *to("whole")])
    checkpoints = run_folder / "run" / "checkpoints"
    resume: tuple[str, ...] = ()
    for moment, step in {"torn": 4, "whole": 8, "named": 12, "any": 16}.items():
        monkeypatch.setenv("KILLED_AT", f"{moment} {step}")
        process, _ = start_two([*run, *resume], first="tiny_killed")
        deadline = time.monotonic() + 240
        while moment == "any" and not any(path.name > f"step-{step:06d}" for path in checkpoints.glob("step-*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        if moment == "any":
            os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate(timeout=240)
        assert process.returncode == -signal.SIGKILL, said
        left = [path.name for path in sorted(checkpoints.iterdir())]
        before, now = f"step-{step - 1:06d}.ckpt", f"step-{step:06d}"
        assert moment == "any" or left == [before, f"{now}.ckpt" if moment == "named" else f"{now}.tmp"]
        resume = LAST
    in_two_processes(run_folder, [*run, *LAST])
    last = summary(run_folder / "run")
    assert last["weights_sha256"] == summary(run_folder / "whole")["weights_sha256"] and last["resumed_from_step"] > 14
    assert metrics(run_folder / "run") == metrics(run_folder / "whole")


# ---- written while training goes on -----------------------------------------------------------------------


class Training:
    """A module of one weight on one process, and the Trainer of its run.

    Attributes:
        writes: set once shards are written. release: lets held writes go on.
    """

    def __init__(self, root: Path, **options: Any) -> None:
        self.weight, self.moment, self.count = torch.zeros(3), torch.zeros(6)[3:], torch.zeros(())
        self.strategy, self.saver = Sharded(), RunCheckpoint(**options)
        of_weight = {"exp_avg": self.moment, "step": self.count}
        self.strategy._optimizers = [SimpleNamespace(state={self.weight: of_weight})]
        none = SimpleNamespace(policy=None)
        module = SimpleNamespace(parameters=lambda: [self.weight], reference=none, teachers=Teachers(None))
        self.strategy._lightning_module = module
        self.logged: dict[str, float] = {}
        self.module: Any = SimpleNamespace(iteration=0, validation=SimpleNamespace(results={}))
        self.trainer: Any = SimpleNamespace(
            default_root_dir=str(root),
            strategy=self.strategy,
            is_global_zero=True,
            should_stop=False,
            global_step=0,
            sanity_checking=False,
            save_checkpoint=self.save_checkpoint,
            loggers=[SimpleNamespace(log_metrics=lambda metrics, step: self.logged.update(metrics))],
        )
        self.writes, self.release = threading.Event(), threading.Event()

    def save_checkpoint(self, path: Path, storage_options: Any = None) -> None:
        moments = {"weight": {"exp_avg": self.moment, "step": self.count}}
        made: dict[str, Any] = dict.fromkeys(CHECKPOINT_PARTS) | {
            "state_dict": {"weight": self.weight},
            "optimizer_states": [{"state": moments}],
            "rlvr": {"reference": {"weights": None}, "teachers": {}},
            "global_step": self.trainer.global_step,
        }
        self.strategy.save_checkpoint(made, path, storage_options)

    def step(self, accuracy: float | None = None) -> None:
        """Change the tensors in place, as an optimizer does, and end an iteration, maybe with a validation."""
        self.trainer.global_step += 1
        self.module.iteration += 1
        self.weight += 1
        self.moment += 2
        self.count += 1
        self.saver.on_train_batch_end(self.trainer, self.module, None, None, 0)
        if accuracy is not None:
            self.module.validation.results = {"val/accuracy": accuracy}
            self.saver.on_validation_end(self.trainer, self.module)

    def names(self) -> list[str]:
        return sorted(path.name for path in Path(self.trainer.default_root_dir, "checkpoints").iterdir())


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Training]:
    made, write = Training(tmp_path, every=1, minutes=0, best="val/accuracy"), ShardWriter.write_data

    def held(self: ShardWriter, *plan: Any) -> Any:
        made.writes.set()
        assert made.release.wait(20)
        return write(self, *plan)

    monkeypatch.setattr(ShardWriter, "write_data", held)
    yield made
    made.release.set()
    with suppress(OSError):
        made.strategy.finish_saving()


def test_training_goes_on_while_a_copy_of_that_moment_is_written(training: Training) -> None:
    """Names come last: until then the older checkpoint is there, and the newer one is not the best."""
    training.release.set()
    training.step()
    training.saver.finish(training.trainer)
    training.release.clear()
    training.step(accuracy=0.5)
    assert training.strategy.is_saving and training.names() == ["step-000001.ckpt", "step-000002.tmp"]
    training.weight += 7
    training.moment += 7
    assert last_checkpoint(training.trainer.default_root_dir).name == "step-000001.ckpt"
    training.release.set()
    training.saver.finish(training.trainer)
    assert training.names() == ["best.ckpt", "step-000002.ckpt"]
    (saved,) = list_checkpoints(training.trainer.default_root_dir)
    assert read_whole(saved, WEIGHTS)["weight"].tolist() == [2, 2, 2]
    moments = read_whole(saved, MOMENTS)
    assert moments["weight.exp_avg"].tolist() == [4, 4, 4] and moments["weight.step"] == 2
    training.step(accuracy=0.9)
    assert {"time/checkpoint", "time/checkpoint_write"} <= training.logged.keys()


@pytest.mark.parametrize("when", ["step", "save", "end"])
def test_a_disk_that_fills_up_ends_the_run_in_one_line(
    training: Training, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    training.release.set()
    training.step()
    training.saver.finish(training.trainer)
    opened = fsdp2.dcp.filesystem.FileSystem.create_stream

    def full(self: Any, path: Path, mode: str) -> Any:
        return open("/dev/full", mode, buffering=0) if Path(path).suffix == ".distcp" else opened(self, path, mode)

    monkeypatch.setattr(fsdp2.dcp.filesystem.FileSystem, "create_stream", full)
    training.step()
    assert training.strategy.saving is not None
    with pytest.raises(UserError, match=r"checkpoints/step-000002\.ckpt cannot be written: No space left on device"):
        if when == "step":
            training.saver.every = 0
            training.strategy.saving.exception()
            training.step()
        elif when == "save":
            training.step()
        else:
            training.saver.on_train_end(training.trainer, training.module)
    assert training.names() == ["step-000001.ckpt"]


def test_without_memory_for_a_copy_training_waits(
    training: Training, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Sharded, "num_processes", 4)
    bytes_of_four = 4 * (3 * 4 + 3 * 4 + 4)
    monkeypatch.setattr(fsdp2, "available_memory", lambda: bytes_of_four)
    training.release.set()
    for step in (1, 2):
        training.step()
        assert training.strategy.saving is None and training.names() == [f"step-00000{step}.ckpt"]
    assert caplog.text.count("training waits while checkpoints are written") == 1
    monkeypatch.setattr(fsdp2, "available_memory", lambda: 2 * bytes_of_four)
    training.step()
    assert training.strategy.saving is not None


def test_an_exception_waits_for_the_save_in_flight_and_a_second_ctrl_c_does_not(training: Training) -> None:
    training.step()
    RunCheckpoint().on_exception(training.trainer, training.module, KeyboardInterrupt())
    assert training.strategy.is_saving
    threading.Timer(0.1, training.release.set).start()
    RunCheckpoint().on_exception(training.trainer, training.module, KeyError())
    assert training.names() == ["step-000001.ckpt"]


def test_an_engine_starts_after_the_save_in_flight(training: Training) -> None:
    """It replaces the default process group, by which a save's collectives find their rank."""
    training.step()
    assert training.writes.wait(20)
    saved: list[bool] = []

    def start() -> None:
        with VLLMProcessGroup().inside():
            saved.append(training.release.is_set())

    engine = threading.Thread(target=start)
    engine.start()
    time.sleep(0.1)
    training.release.set()
    engine.join()
    assert saved == [True]
