"""What ends a command is one line, unless it is a bug of ours."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_runs import CLI, FIT

import lit_rlvr.rollout.sync as sync
from lit_rlvr.cli.error_lines import TRACEBACK

MINE = """
import torch
from lit_rlvr.datamodules import PromptDataModule
from lightning.pytorch import Callback
from lit_rlvr.algorithms import GRPO
from lit_rlvr.rewards import Reward
from lit_rlvr.types import RewardResult, Sample


class Raises(PromptDataModule):
    def rows(self, split):
        yield Sample("0", "1+1?", "2")
        yield {}["prompt"]


class Nothing(PromptDataModule):
    def rows(self, split):
        return None


class Bare(PromptDataModule):
    def __init__(self):
        self.prompt = "1+1?"


class Far(GRPO):
    def objective(self, x):
        loss, stats = super().objective(x)
        return loss.to("meta"), stats


class FarNote(GRPO):
    def observe(self, group):
        return {"far": group.rewards.sum().to("meta")}


class Typo(GRPO):
    def objective(self, x):
        return x.lopg.sum(), {}


class Ends(Callback):
    def on_train_batch_end(self, *arguments):
        raise IndexError("nothing\\nto show")


class Judge(Reward):
    pass


def far(group):
    return torch.zeros(group.rewards.shape, device="meta")


def far_reward(completion, sample):
    return torch.ones((), device="meta")


def great(completion, sample):
    return RewardResult(1.0, status="great")


def typo(group):
    return group.rewads
"""
HINT = f"({TRACEBACK}=1 shows the whole traceback)"
GIVES = "must give finite values of shape (P, G) = (4, 4), a floating-point tensor on cpu; it gave None"


def callback(name: str, **options: str) -> list[str]:
    init_args = ", ".join(f"{key}: {value}" for key, value in options.items())
    return ["--trainer.callbacks", f"[{{class_path: {name}, init_args: {{{init_args}}}}}]"]


def at(line: str, after: str = "") -> str:
    """Where a line of MINE stands, the first one after another line."""
    lines = [text.strip() for text in MINE.splitlines()]
    return f"my_own.py:{lines.index(line, lines.index(after)) + 1}"


CASES = {
    "rows raise": (
        ["--data", "my_own.Raises"],
        at('yield {}["prompt"]') + f": KeyError: 'prompt' {HINT}",
    ),
    "no rows": (
        ["--data", "my_own.Nothing"],
        "must give Samples for the split 'train', it gave none",
    ),
    "no super().__init__": (
        ["--data", "my_own.Bare"],
        f"data: Bare.__init__ ({at('def __init__(self):')}) must call super().__init__(",
    ),
    "advantage on another device": (
        ["--model.init_args.advantage", "my_own.far"],
        f"model.advantage: far ({at('def far(group):')}) {GIVES[:-4]}torch.float32 of shape (4, 4) on meta",
    ),
    "loss on another device": (
        ["--model", "my_own.Far"],
        "the loss must be a tensor on cpu with one real number, not torch.float32 of shape () on meta",
    ),
    "note on another device": (
        ["--model", "my_own.FarNote"],
        "must return a dict of names and numbers; 'far' is torch.float",
    ),
    "reward on another device": (
        ["--rollout.rewards", "[my_own.far_reward]"],
        "far_reward",
    ),
    "advantage raises": (
        ["--model.init_args.advantage", "my_own.typo"],
        f"{at('return group.rewads')}: AttributeError: ",
    ),
    "status that there is not": (
        ["--rollout.rewards", "[my_own.great]"],
        "RewardResult.status: 'great' is not one of ok, parse_fail, timeout, error",
    ),
    "reward without __call__": (
        ["--rollout.rewards", "[my_own.Judge]"],
        "rewards.FunctionReward.path 'my_own.Judge': it lacks __call__; define it in the class",
    ),
    "folder of a model": (
        ["--model.init_args.model", "./my_model"],
        "model: there is no folder './my_model'; give",
    ),
    "overfit_batches": (
        ["--trainer.overfit_batches", "1"],
        "trainer.overfit_batches: it has no effect on prompts",
    ),
    "long value": (
        ["--rollout.engine", "x" * 100_000],
        "characters left out] xxx",
    ),
    "objective raises": (
        ["--model", "my_own.Typo"],
        f"{at('return x.lopg.sum(), {}')}: AttributeError: ",
    ),
    "callback raises": (
        callback("my_own.Ends"),
        f": IndexError: nothing {HINT}",
    ),
    "logger": (
        ["--trainer.logger", "lightning.pytorch.loggers.CometLogger"],
        "trainer: Requirement 'comet",
    ),
    "accelerator": (
        ["--trainer.accelerator", "tpu"],
        "trainer: Requirement 'torch_xla",
    ),
    "a name that no file system takes": (
        ["--trainer.default_root_dir", "a" * 300],
        "cannot be written: File name too long",
    ),
    "interval": (
        ["--trainer.val_check_interval", "5"],
        "unknown option '--trainer.val_check_interval'; it would count rollouts, but trainer.max_steps counts "
        "optimizer steps: set rollout.validate_every_rollouts instead",
    ),
    "monitored metric": (
        callback("EarlyStopping", monitor="val_accuracy"),
        "trainer.callbacks: EarlyStopping.monitor: no metric is called 'val_accuracy'; there are val/accuracy",
    ),
}


@pytest.mark.first_case_fast
@pytest.mark.parametrize("case", CASES)
def test_bad_options_and_the_users_own_errors_are_one_line(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    (run_folder / "my_own.py").write_text(MINE)
    monkeypatch.delitem(sys.modules, "my_own", raising=False)
    arguments, said = CASES[case]
    refusal = lit_rlvr(*FIT, *arguments).refusal
    assert said in refusal and len(refusal) < 2100


def test_a_launcher_starts_a_run_with_the_command_that_resumes_it(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume = (*FIT, "--ckpt_path", "last", "--trainer.max_steps", "1")
    assert lit_rlvr(*resume).status == 2  # it may be a misspelt folder
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    lit_rlvr(*resume, status=0, says="the run starts from the beginning")
    assert "nothing to train" in lit_rlvr(*resume).err


def test_a_record_that_no_run_wrote_is_one_line(run_folder: Path, lit_rlvr: CLI) -> None:
    assert lit_rlvr(*FIT, "--trainer.max_steps", "2").status == 0
    with (run_folder / "run" / "completions.jsonl").open("a") as file:
        file.write('{"mine": 1}\n')
    lit_rlvr(*FIT, "--ckpt_path", "last", status=2, says="completions.jsonl, line 17: not a record of a run")


@contextmanager
def obeying_permissions() -> Iterator[None]:
    """Take from this thread what lets root read every file: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    effective = sets[0]
    sets[0] &= ~0b110
    libc.capset(header, sets)
    try:
        yield
    finally:
        sets[0] = effective
        libc.capset(header, sets)


DENIED = ": permission denied; check who owns it, and its folders"


def test_a_permission_that_another_users_files_lack_is_one_line(run_folder: Path, lit_rlvr: CLI) -> None:
    """A file that cannot be read is not called one that cannot be written; what cannot be seen is not called empty."""
    assert lit_rlvr(*FIT, "--trainer.max_steps", "1").status == 0
    for name, mode in (("closed", 0), ("run/checkpoints", 0), ("rows.jsonl", 0o644), ("mine.yaml", 0)):
        path = run_folder / name
        path.parent.mkdir(exist_ok=True)
        path.touch() if path.suffix else path.mkdir(exist_ok=True)
        path.chmod(mode)
    commands = {
        ("fit", "--config", "mine.yaml"): "mine.yaml",
        ("fit", "--config", "closed/tiny.yaml"): "closed/tiny.yaml",
        (
            "preview",
            "--config",
            "tiny.yaml",
            "--data",
            "TextMath",
            "--data.train",
            "closed/rows.jsonl",
        ): "closed/rows.jsonl",
        ("evaluate", "--model", "run", "--suite", "m=closed/rows.jsonl", "--out", "out"): "closed/rows.jsonl",
        ("export", "run", "--to", "exported"): "run/checkpoints",
        ("report", "closed", "--out", "page.html"): "closed/",
        (*FIT, "--ckpt_path", "last", "--trainer.max_steps", "2"): "run/checkpoints",
    }
    for command, file in commands.items():
        with obeying_permissions():
            refusal = lit_rlvr(*command).refusal
        assert file in refusal and refusal.endswith(DENIED), command


def test_the_traceback_is_shown_on_request(run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACEBACK, "1")
    result = lit_rlvr(*FIT, "--model.init_args.clip_low", "-1")
    assert "Traceback (most recent call last)" in result.err
    assert result.err.splitlines()[-1] == "lit-rlvr: error: model.clip_low: -1.0 must lie in [0, 1]"


def test_a_bug_of_ours_keeps_its_traceback(run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "count_repeats", lambda *_: None)
    with pytest.raises(TypeError):
        lit_rlvr(*FIT)
