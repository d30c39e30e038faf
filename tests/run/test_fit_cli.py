"""`lit-rlvr fit` and `validate` from the command line: what a run leaves, how it goes on, how it refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import (
    CLI,
    FIT,
    assert_same_run,
    completions,
    fit,
    metrics,
    summary,
    to,
)

from lit_rlvr.configs import config_folder
from lit_rlvr.distributed.checkpoints import last_checkpoint

SUMMARY_KEYS = {
    "accuracy_before", "accuracy_after", "steps", "resumed_from_step", "train_seconds", "engine", "algorithm",
    "weights_sha256", "startup_seconds", "engine_start_seconds", "validation_seconds",
}  # fmt: skip


# ---- what a run leaves ------------------------------------------------------------------------------------


@pytest.mark.pictures
def test_fit_leaves_everything_in_its_folder(run_folder: Path, lit_rlvr: CLI) -> None:
    result = fit(lit_rlvr)
    run = run_folder / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == 1e-3 and config["model"]["init_args"]["loss"]["aggregation"]
    assert config["rollout"]["sampling"]["max_tokens"] == 8 and config["trainer"]["max_steps"] == 6

    rows = metrics(run)
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert [int(row["step"]) for row in rows if row["val/arithmetic/accuracy"] != ""] == [0, 3, 6]
    for row in rows[1:]:
        for name in ("rollout/reward", "rollout/accuracy", "rollout/length", "rollout/truncated", "train/loss",
                     "train/entropy", "train/grad_norm", "train/lr", "reward/first_token"):  # fmt: skip
            assert row[name] != "", name
    with (run / "metrics.csv").open() as file:
        assert {"time/sync", "time/generate", "time/score", "time/train"} <= set(next(csv.reader(file)))

    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert (run / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-000006.ckpt"]

    samples = completions(run)
    assert {row["step"] for row in samples} == {1, 2, 3, 4, 5, 6}
    for row in samples:
        assert {"step", "id", "prompt", "completion", "reward", "advantage", "finish_reason", "correct"} <= set(row)
        assert row["reward"] == float(row["correct"]) and row["answer"] == str(sum(map(int, row["id"].split("+"))))
    first = [row for row in samples if row["step"] == 1 and row["id"] == samples[0]["id"]]
    assert len(first) == 4 and abs(sum(row["advantage"] for row in first)) < 1e-5

    result_summary = summary(run)
    assert set(result_summary) >= SUMMARY_KEYS
    assert result_summary["steps"] == 6 and result_summary["resumed_from_step"] == 0
    assert result_summary["engine"] == "hf" and result_summary["algorithm"] == "GRPO"
    assert result_summary["accuracy_before"] == pytest.approx(float(rows[0]["val/arithmetic/accuracy"]))
    assert result_summary["accuracy_after"] == pytest.approx(float(rows[6]["val/arithmetic/accuracy"]))
    assert result_summary["stopped"] is None and 0 < result_summary["train_seconds"] < 60
    assert len(result_summary["weights_sha256"]) == 64
    assert "step 6/6" in result.err and "Validation accuracy" in result.err
    assert summary(run)["validation_seconds"] > 0 and summary(run)["engine_start_seconds"] < 1, "hf loads nothing"


def test_automatic_micro_batches_are_chosen_once(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's settings have the number, and a resume keeps it whatever the machine has by then."""
    memory = "lit_rlvr.sizing.strategies.device_memory"
    auto = ("--trainer.limit_val_batches", 0)  # which is the default

    def chosen(run: str) -> int:
        settings = yaml.safe_load((run_folder / run / "config.yaml").read_text())
        return int(settings["model"]["init_args"]["compute"]["tokens_per_microbatch"])

    fit(lit_rlvr, *auto, *to("cpu"), "--trainer.max_steps", 1)
    assert chosen("cpu") == 4096
    monkeypatch.setattr("lit_rlvr.sizing.auto.trains_on_gpus", lambda trainer: True)
    monkeypatch.setattr(memory, lambda trainer: 64 * 2**30)
    step = 4 * (512 + 4 * 7)  # four prompts with four completions each
    result = fit(lit_rlvr, *auto, "--trainer.max_steps", 2)
    assert f"tokens_per_microbatch: {step}: about" in result.err and "of 64 GiB" in result.err
    assert f"at most {step} tokens at once" in result.err and chosen("run") == step
    monkeypatch.setattr(memory, lambda trainer: 2**20)
    result = fit(lit_rlvr, *auto, "--ckpt_path", "last", "--trainer.max_steps", 3)
    assert f"at most {step} tokens at once" in result.err and chosen("run") == step
    assert "resumed with a different trainer.max_steps" in result.err
    assert "tokens_per_microbatch" not in result.err
    result = fit(lit_rlvr, *auto, *to("less"), "--trainer.max_steps", 1)
    assert (
        "tokens_per_microbatch: 1024 with gradient checkpointing: about" in result.err and "WILL NOT FIT" in result.err
    )
    assert chosen("less") == 1024


@pytest.mark.slow
def test_without_a_validation_set_accuracies_are_null_and_it_is_said(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(
        lit_rlvr,
        *to("unused"),
        "--trainer.limit_val_batches",
        0,
        "--trainer.max_steps",
        1,
        says="Validation accuracy not measured before, not measured after",
    )
    fast = fit(lit_rlvr, *to("fast"), "--trainer.fast_dev_run", "true")
    assert "Validation accuracy not measured before, " in fast.err and "no validation set" not in fast.err
    result = fit(lit_rlvr, "--data.init_args.held_out", 0, "--trainer.max_steps", 2)
    assert summary(run_folder / "run")["accuracy_before"] is None
    assert summary(run_folder / "run")["accuracy_after"] is None
    assert "no validation set" in result.err


# ---- going on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updates", "precision"), [(2, "32-true"), pytest.param(2, "bf16-mixed", marks=pytest.mark.slow)]
)
def test_a_resumed_run_is_the_uninterrupted_one(run_folder: Path, lit_rlvr: CLI, updates: int, precision: str) -> None:
    options = ("--model.init_args.updates_per_rollout", updates, "--trainer.precision", precision)
    schedule = ("--model.init_args.optim.lr_schedule", "constant", "--model.init_args.optim.warmup_steps", 5)
    fit(lit_rlvr, *to("whole"), *options, *schedule, "--trainer.max_steps", 6 * updates)
    fit(lit_rlvr, *to("parts"), *options, *schedule, "--trainer.max_steps", 3 * updates)
    assert summary(run_folder / "parts")["weights_sha256"] != summary(run_folder / "whole")["weights_sha256"]
    fit(lit_rlvr, *to("parts"), *options, *schedule, "--ckpt_path", "last", "--trainer.max_steps", 6 * updates)
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=3 * updates)


@pytest.mark.slow
def test_resuming_from_an_older_checkpoint_rewrites_what_came_after_it(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, "--checkpoint.every", 1, "--checkpoint.keep", 5)
    names = sorted(p.name for p in (run_folder / "run" / "checkpoints").iterdir())
    assert names == [f"step-00000{step}.ckpt" for step in range(2, 7)], "only the newest stay"
    before = (summary(run_folder / "run"), metrics(run_folder / "run"), completions(run_folder / "run"))
    fit(lit_rlvr, "--ckpt_path", "run/checkpoints/step-000002.ckpt")
    assert summary(run_folder / "run")["weights_sha256"] == before[0]["weights_sha256"]
    assert summary(run_folder / "run")["resumed_from_step"] == 2
    assert (metrics(run_folder / "run"), completions(run_folder / "run")) == before[1:]


# ---- folders that hold a run already ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_fit_is_refused_unless_told_to_overwrite(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, "--trainer.max_steps", 2)
    before = {p: p.read_bytes() for p in (run_folder / "run").rglob("*") if p.is_file()}
    assert_refused(lit_rlvr(*FIT), "already holds a run", "--ckpt_path last", "--overwrite true")
    assert {p: p.read_bytes() for p in (run_folder / "run").rglob("*") if p.is_file()} == before
    (run_folder / "run" / "mine.txt").write_text("keep me")
    failed = lit_rlvr(*FIT, "--overwrite", "true", "--rollout.rewards", "[tiny_rewards.broken]")
    assert (
        failed.status,
        [text for text in ("run: restored the earlier run", "run/.failed") if text not in failed.err],
    ) == (2, [])
    assert {p: p.read_bytes() for p in before} == before, "the new one came to no checkpoint"
    fit(lit_rlvr, "--overwrite", "true", "--trainer.max_steps", 1)
    assert summary(run_folder / "run")["steps"] == 1 and summary(run_folder / "run")["resumed_from_step"] == 0
    assert {row["step"] for row in completions(run_folder / "run")} == {1}
    assert [p.name for p in (run_folder / "run" / "checkpoints").iterdir()] == ["step-000001.ckpt"]
    assert len(list((run_folder / "run" / "tensorboard").glob("events*"))) == 1
    assert (run_folder / "run" / "mine.txt").read_text() == "keep me"
    assert not (run_folder / "run" / ".replaced").exists()


# ---- going on with other settings -------------------------------------------------------------------------


@pytest.mark.slow
def test_other_settings_on_resume_are_named_and_used(run_folder: Path, lit_rlvr: CLI) -> None:
    """The optimizer's own state has the old learning rate."""
    fit(lit_rlvr, "--trainer.max_steps", 2)
    assert "another" not in fit(lit_rlvr, "--trainer.max_steps", 2, "--ckpt_path", "last").err
    options = (
        "--model.init_args.lr",
        5e-4,
        "--model.init_args.optim.weight_decay",
        0.1,
        "--rollout.sampling.max_tokens",
        6,
    )
    result = fit(lit_rlvr, "--trainer.max_steps", 3, "--ckpt_path", "last", *options)
    said = [line for line in result.err.splitlines() if line.startswith("resumed with a different ")]
    assert said == [
        "resumed with a different model.init_args.lr: 0.001 -> 0.0005",
        "resumed with a different model.init_args.optim.weight_decay: 0.0 -> 0.1",
        "resumed with a different rollout.sampling.max_tokens: 8 -> 6",
        "resumed with a different trainer.max_steps: 2 -> 3",
    ]
    assert [float(row["train/lr"]) for row in metrics(run_folder / "run")[1:]] == pytest.approx([1e-3, 1e-3, 5e-4])
    (group,) = torch.load(last_checkpoint(run_folder / "run"), weights_only=True)["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (5e-4, 5e-4, 0.1)


# ---- loggers ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("logger", "left"),
    [
        ("CSVLogger", ["lightning_logs", "metrics.csv", "tensorboard"]),
        ("[{class_path: CSVLogger, init_args: {name: more}}]", ["metrics.csv", "more", "tensorboard"]),
        ("[{class_path: CSVLogger, init_args: {save_dir: elsewhere}}]", ["metrics.csv", "tensorboard"]),
        ("false", ["metrics.csv"]),
    ],
)
def test_loggers_write_into_the_run_folder_besides_ours(
    run_folder: Path, lit_rlvr: CLI, logger: str, left: list[str]
) -> None:
    fit(lit_rlvr, "--trainer.max_steps", 1, "--trainer.logger", logger)
    there = {path.name for path in (run_folder / "run").iterdir()}
    assert sorted(there & {"lightning_logs", "metrics.csv", "more", "tensorboard"}) == left


# ---- validation only --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_validate_measures_a_model_and_a_checkpoint(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr)
    before = {p: p.read_bytes() for p in (run_folder / "run").rglob("*") if p.is_file()}
    fresh = lit_rlvr("validate", "--config", "tiny.yaml")
    trained = lit_rlvr("validate", "--config", "tiny.yaml", "--ckpt_path", "last")
    assert fresh.status == trained.status == 0, fresh.err + trained.err
    accuracies = summary(run_folder / "run")
    assert f"arithmetic/accuracy {accuracies['accuracy_before']:.3f}" in fresh.err + fresh.out
    assert f"arithmetic/accuracy {accuracies['accuracy_after']:.3f}" in trained.err + trained.out
    assert "validation, step 0: " in fresh.err and "validation, step 6: " in trained.err
    after = {p: p.read_bytes() for p in (run_folder / "run").rglob("*") if p.is_file() and "events" not in p.name}
    assert after == {p: before[p] for p in before if "events" not in p.name}, "the run's own files stay as they are"


def test_validate_without_a_set_is_refused(run_folder: Path, lit_rlvr: CLI, no_weights: None) -> None:
    result = lit_rlvr("validate", "--config", "tiny.yaml", "--data.init_args.held_out", "0")
    assert_refused(result, "data: arithmetic has no validation set to measure")
    result = lit_rlvr("validate", "--config", "tiny.yaml", "--trainer.limit_val_batches", "0")
    assert_refused(result, "trainer.limit_val_batches: 0 leaves nothing to measure")
    result = lit_rlvr("test", "--config", "tiny.yaml", "--trainer.limit_test_batches", "0.0")
    assert_refused(result, "trainer.limit_test_batches: 0.0 leaves nothing to measure")


# ---- refusals ---------------------------------------------------------------------------------------------


def assert_refused(result: Any, *said: str) -> None:
    for text in said:
        assert text in result.refusal


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights must not be loaded before the error is told."""

    def load(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("weights were loaded before the input was checked")

    for module in ("lit_rlvr.training.models", "lit_rlvr.run.warm_start"):
        monkeypatch.setattr(f"{module}.load_policy", load)


BAD_ARGUMENTS = {
    "option": (["--model.init_args.learning_rate", "1"], ["learning_rate"]),
    "type": (["--rollout.group_size", "many"], ["group_size"]),
    "micro-batches": (["--model.init_args.compute.tokens_per_microbatch", "automatic"], ["tokens_per_microbatch"]),
    "endless training": (["--model.init_args.epochs_per_rollout", 10**12], ["epochs_per_rollout"]),
    "endless group": (["--rollout.group_size", 10**12], ["rollout.group_size: 1000000000000"]),
    "model": (["--model.init_args.model", "no-such-model"], ["no-such-model", "neither a folder nor"]),
    "empty model folder": (["--model.init_args.model", "."], ["config.json"]),
    "data file": (
        ["--data", "TextMath", "--data.init_args.train", "no_such.jsonl"],
        ["no_such.jsonl"],
    ),
    "endless rollout": (["--rollout.group_size", "900000"], ["are 3600000 sequences in a rollout; use at most"]),
    "no abbreviation": (["--overwrit", "true"], ["'--overwrit'; did you mean '--overwrite'?"]),
    "FSDP1": (
        ["--trainer.strategy", "lightning.pytorch.strategies.FSDPStrategy"],
        ["FSDP1", "--config configs/strategy/fsdp2.yaml"],
    ),
    "top_p": (["--rollout.sampling.top_p", "0.9"], ["top_p", "not drawn from the distribution in the loss"]),
    "advantage": (["--model.init_args.advantage", "grpoo"], ["grpoo", "grpo"]),
    "a clip above 1": (["--model.init_args.clip_low", 3], ["model.clip_low: 3.0 must lie in [0, 1]"]),
    "no budget": (["--budget.samples", 0], ["budget.samples: 0 must lie in [1, inf)"]),
    "no tokens": (
        ["--data.init_args.reading.max_prompt_tokens", 0],
        ["data.reading.max_prompt_tokens: 0 must lie in [1, inf)"],
    ),
    "negative lr, in a file": (["--config", "negative.yaml"], ["model.lr: -1.0 must lie in"]),
    "held out": (["--data.init_args.held_out", "999"], ["held_out", "999"]),
    "reward options": (["--rollout.rewards", "[{class_path: Format}]"], ["Format", "pattern"]),
    "reward class": (["--rollout.rewards", "[{class_path: Fromat}]"], ["Fromat"]),
    "engine": (["--rollout.engine", "vlm"], ["vlm"]),
    "checkpoint": (["--ckpt_path", "last"], ["no checkpoint"]),
    "checkpoint file": (["--ckpt_path", "no_such.ckpt"], ["ckpt_path: there is no checkpoint 'no_such.ckpt'"]),
}


@pytest.mark.first_case_fast
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_one_clear_line(run_folder: Path, lit_rlvr: CLI, no_weights: None, case: str) -> None:
    arguments, said = BAD_ARGUMENTS[case]
    (run_folder / "negative.yaml").write_text("model: {init_args: {lr: -1.0}}\n")
    assert_refused(lit_rlvr(*FIT, *arguments), *said)
    assert not (run_folder / "run" / "summary.json").exists()


def test_everything_that_does_not_fit_together_is_said_at_once(
    run_folder: Path, lit_rlvr: CLI, no_weights: None
) -> None:
    together = ("--model.init_args.updates_per_rollout", 3, "--rollout.group_size", 1, "--warm_start.steps", 1,
                "--warm_start.categories", "[x]", "--rollout.sampling.max_tokens", 10**6)  # fmt: skip
    result = lit_rlvr(*FIT, *together)
    errors = [line for line in result.err.splitlines() if line.startswith("lit-rlvr: error: ")]
    assert result.status == 2 and len(errors) == 4, result.err
    for said, line in zip(
        (
            "rollout.group_size: 1 is too small",
            "data.prompts_per_rollout: 4 prompts cannot be split evenly",
            "more than the model's context",
            "warm_start.categories: no training prompt has the category 'x'",
        ),
        errors,
        strict=True,
    ):
        assert said in line


BAD_CONFIGS = {
    "broken YAML": ("model: {class_path: GRPO\ntrainer: {}\n", ["bad.yaml", "line 2"]),
    "a tab": ("model:\n  class_path: GRPO\n\tinit_args: {}\n", ["bad.yaml", "line 3"]),
    "not a mapping": ("- 1\n- 2\n", ["bad.yaml"]),
    "empty": ("", ["--config: bad.yaml: is empty; its keys are base, "]),
    "unknown key": ("rolout: {group_size: 2}\n", ["rolout", "'rollout'"]),
    "unknown key inside": ("rollout: {group_sze: 2}\n", ["group_sze", "group_size"]),
    "unknown key of the model": ("model: {init_args: {lr_shedule: linear}}\n", ["lr_shedule", "lr_schedule"]),
    "unknown key of sampling": ("rollout: {sampling: {max_token: 2}}\n", ["max_token", "max_tokens"]),
    "no seed": ("seed_everything: null\n", ["seed_everything: null is not a seed"]),
    "a key twice": ("rollout: {group_size: 2}\nrun: {}\nrollout: {group_size: 4}\n", ["bad.yaml, line 3", "twice"]),
    "not text": (b"\xff\xfe\x00", ["bad.yaml"]),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_configs_are_one_clear_line(run_folder: Path, lit_rlvr: CLI, no_weights: None, case: str) -> None:
    text, said = BAD_CONFIGS[case]
    (run_folder / "bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused(lit_rlvr(*FIT, "--config", "bad.yaml"), *said)


def test_near_config_names_are_suggested(run_folder: Path, lit_rlvr: CLI) -> None:
    assert_refused(lit_rlvr("fit", "--config", "quickstrat"), "'quickstrat'; did you mean quickstart?")
    assert_refused(lit_rlvr("fit", "--config", "llama_grpo"), "did you mean recipes/", "_grpo?")
    far = lit_rlvr("fit", "--config", "zzzzqqqq")
    assert_refused(far, "'zzzzqqqq'; the shipped ones are in ", str(config_folder()))
    assert len(far.err) < 300


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("in_the_way/run", "in_the_way is a file; give a folder"),
        ("in_the_way", "trainer.default_root_dir: in_the_way is a file; give a folder"),
        (
            "~no_such_user/run",
            "~no_such_user/run: there is no home folder ~no_such_user; write the folder's whole path",
        ),
        ("/proc/no_such/run", "/proc/no_such/run cannot be written"),
    ],
)
def test_an_unwritable_folder_is_refused_before_weights_load(
    run_folder: Path, lit_rlvr: CLI, no_weights: None, root: str, said: str
) -> None:
    (run_folder / "in_the_way").write_text("a file")
    assert_refused(lit_rlvr(*FIT, *to(root)), said)


def test_a_reward_that_raises_stops_the_run_and_shows_where(run_folder: Path, lit_rlvr: CLI) -> None:
    result = lit_rlvr(*FIT, "--rollout.rewards", "[tiny_rewards.broken]")
    assert_refused(
        result,
        "broken",
        "KeyError",
        "no_such_column",
        "max_failure_rate",
        "failed_rewards.jsonl",
        "mend it, and resume",
    )
    rows = [json.loads(line) for line in (run_folder / "run" / "failed_rewards.jsonl").read_text().splitlines()]
    assert rows and all("KeyError" in row["failed"]["broken"] for row in rows)


def test_an_unknown_command_and_no_command(lit_rlvr: CLI) -> None:
    assert_refused(lit_rlvr("fti"), "fti", "fit")
    assert lit_rlvr().status == 0 and "lit-rlvr COMMAND" in lit_rlvr("--help").out
    assert lit_rlvr("--version").out.startswith("lit-rlvr ")
    assert lit_rlvr("help").out == lit_rlvr("--help").out
    assert_refused(lit_rlvr("help", "fti"), "fti", "fit")


def test_options_that_a_class_change_drops_are_named(run_folder: Path, lit_rlvr: CLI, tmp_path: Path) -> None:
    rows = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = fit(
        lit_rlvr,
        "--data",
        "TextMath",
        "--data.init_args.train",
        "rows.jsonl",
        "--dry-run",
        says="data: TextMath instead of Arithmetic of tiny.yaml: kept evaluation.prompts_per_batch, prompts_per_roll",
    )
    assert "dropped held_out, high" in result.err
    settings = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    settings["data"] = {"class_path": "TextMath", "init_args": {"train": "rows.jsonl", "prompts_per_rollout": 2}}
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump(settings))
    weighted = lit_rlvr("fit", "--config", "rows.yaml", "--data.init_args.train", "{rows.jsonl: 1}", "--dry-run")
    assert weighted.status == 0, weighted.err
    assert "instead of" not in weighted.err, "a mapping in the place of a text drops nothing"
    (tmp_path / "apmpo.yaml").write_text(
        "base: tiny.yaml\n"
        "model: {class_path: APMPO, init_args: {kl: {estimator: k2}, schedule: {power: 1}, gamma: 1}}\n"
    )
    other = lit_rlvr("fit", "--config", "apmpo.yaml", "--model", "GPG", "--dry-run")
    said = "model: GPG instead of APMPO of apmpo.yaml: kept lr, model, kl.estimator; dropped schedule.power, gamma"
    assert other.status == 0 and said in other.err, other.err
