"""Runs that train on the rollouts that another run has recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import save_model, tiny_llama
from tiny_rewards import judged_as_is
from tiny_runs import (
    CLI,
    FIT,
    STRATEGIES,
    completions,
    fit,
    in_two_processes,
    metrics,
    pictures_config,
    summary,
    to,
    write_config,
)

from lit_rlvr.engines.hf import HFEngine

RARE = ("--rollout.rewards", json.dumps([judged_as_is("rare")]))
STALE = ("--rollout.staleness", "1", "--rollout.engine", "tiny_engines.Copying")
STREAMING = ("--rollout.staleness", "2", "--rollout.engine", "tiny_engines.Streaming")
DYNAMIC = ("--model", "DAPO", *RARE, "--model.init_args.updates_per_rollout", "2")
RECORD, UNVALIDATED = ("--rollout.replay.record", "1"), ("--trainer.limit_val_batches", "0")
REPLAY = ("--rollouts-from", "run", *to("again"))
TURNS = (
    "--rollout.environment",
    "tiny_environments.Echo",
    "--rollout.sampling.max_turns",
    "3",
    "--rollout.sampling.max_observation_tokens",
    "40",
    "--rollout.rewards",
    "null",
)


def digest(run: Path) -> str:
    return str(summary(run)["weights_sha256"])


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines fail when they are started."""

    def start(*_: Any) -> None:
        raise AssertionError("a replay started the engine")

    monkeypatch.setattr(HFEngine, "start", start)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(STALE, id="staleness 1"),
        pytest.param((*STREAMING, *DYNAMIC), id="staleness 2 and dynamic sampling", marks=pytest.mark.slow),
        pytest.param(
            ("--model", "AAPO", "--model.init_args.updates_per_rollout", "2", "--model.init_args.epochs_per_rollout",
             "2", "--trainer.max_steps", "12", *RECORD),
            id="reference, updates and epochs", marks=pytest.mark.slow,
        ),
        pytest.param((*TURNS, *RECORD, "--rollout.mask_truncated", "true"), id="turns", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_replay_ends_in_the_same_weights(
    run_folder: Path, lit_rlvr: CLI, request: pytest.FixtureRequest, options: tuple[str, ...]
) -> None:
    fit(lit_rlvr, *options, *UNVALIDATED)
    request.getfixturevalue("no_engine")
    said = fit(lit_rlvr, *options, *UNVALIDATED, *REPLAY, "--seed_everything", "0").err
    run, again = run_folder / "run", run_folder / "again"
    assert digest(again) == digest(run) and "the record ends" not in said
    for row, wanted in zip(metrics(again), metrics(run), strict=True):
        trained = [name for name in wanted if name.startswith("train/") and name != "train/staleness/wait"]
        assert trained and [row[name] for name in trained] == [wanted[name] for name in trained]
    assert [row["reward"] for row in completions(again)] == [row["reward"] for row in completions(run)]
    recorded = [path.read_bytes() for path in sorted((run / "record").iterdir())]
    copies = [path.read_bytes() for path in sorted((again / "record").glob("*"))]
    assert copies == (recorded if RECORD[0] in options else []), "a record of a replay is the same record"


@pytest.fixture
def recorded(run_folder: Path, lit_rlvr: CLI) -> Path:
    """A run of six iterations, with its record."""
    fit(lit_rlvr, *RECORD, *UNVALIDATED)
    return run_folder / "run"


@pytest.mark.slow
def test_another_loss_trains_on_the_same_rollouts(recorded: Path, lit_rlvr: CLI, no_engine: None) -> None:
    fit(lit_rlvr, *UNVALIDATED, *REPLAY, "--model", "DrGRPO", "--model.init_args.updates_per_rollout", "2")
    again = recorded.with_name("again")
    rows = list(zip(completions(again), completions(recorded), strict=False))
    assert len(completions(again)) == len(completions(recorded)) / 2, "six steps are three rollouts of two"
    same = ("id", "completion", "reward", "correct", "status", "finish_reason", "tokens")
    assert all([ours[key] for key in same] == [theirs[key] for key in same] for ours, theirs in rows)
    assert digest(again) != digest(recorded)


@pytest.mark.slow
def test_a_run_ends_where_the_record_does(run_folder: Path, lit_rlvr: CLI) -> None:
    options = (*DYNAMIC, *UNVALIDATED)
    fit(lit_rlvr, *options, *RECORD)
    more, again = (*options, "--trainer.max_steps", "10"), run_folder / "again"
    for resume in ((), ("--ckpt_path", "last")):
        said = fit(lit_rlvr, *more, *REPLAY, *resume).err
        assert said.count("the record ends after iteration 3, and so does this run") == 1
    assert (summary(again)["steps"], summary(again)["stopped"]) == (6, None)
    assert digest(again) == digest(run_folder / "run")
    fit(lit_rlvr, *more, *to("again"), "--ckpt_path", "last")  # goes on by itself, from the prompts after the record's
    fit(lit_rlvr, *more, *to("whole"))
    assert digest(again) == digest(run_folder / "whole")


@pytest.mark.slow
def test_a_record_with_a_gap_is_refused_by_the_missing_file(recorded: Path, lit_rlvr: CLI) -> None:
    """What is missing at its end is not known: a run may have been killed there."""
    record = recorded / "record"
    fit(lit_rlvr, *UNVALIDATED, *REPLAY)
    assert "rollout/tokens_per_second" not in (recorded.with_name("again") / "metrics.csv").read_text()
    for lost in (1, 3, 5):
        path = record / f"iteration-{lost:06d}-rank-0.npz"
        content = path.read_bytes()
        path.unlink()
        result = lit_rlvr(
            *FIT,
            *UNVALIDATED,
            *REPLAY,
            "--overwrite",
            "true",
            status=2,
            says=f"lacks record/{path.name}, and has later iterations",
        )
        assert (f"to train on the {lost - 1} iteration(s) before it" in result.err) == (lost > 1)
        path.write_bytes(content)
    path = record / "iteration-000006-rank-0.npz"
    path.unlink()
    said = fit(lit_rlvr, *UNVALIDATED, *REPLAY, "--overwrite", "true").err
    assert "the record ends after iteration 5, and so does this run" in said and "tokens/s" not in said


REFUSED = {
    "recorded with data.prompts_per_rollout 4, this run has 2": ["--data.init_args.prompts_per_rollout", "2"],
    "recorded with rollout.sampling.temperature 1.0, this": ["--rollout.sampling.temperature", "0.5"],
    "recorded with rollout.mask_truncated False, this": ["--rollout.mask_truncated", "true"],
    "run was recorded with first weights ": ["--model.init_args.model", "other"],
    "it is this run's own folder": ["--trainer.default_root_dir", "run", "--overwrite", "true"],
}


@pytest.mark.slow
def test_what_cannot_be_replayed_is_refused(recorded: Path, lit_rlvr: CLI) -> None:
    save_model(tiny_llama(seed=5), recorded.with_name("other"))
    for words, options in REFUSED.items():
        refusal = fit(lit_rlvr, *REPLAY, *UNVALIDATED, *options, status=2).refusal
        assert (
            [text for text in ("rollout.replay.rollouts_from: ", words) if text not in refusal],
            bool(digest(recorded)),
        ) == ([], True)
    fit(
        lit_rlvr,
        *REPLAY,
        *UNVALIDATED,
        "--rollout.group_size",
        "2",
        "--dry-run",
        status=2,
        says="recorded with rollout.group_size 4, this run has 2",
    )
    fit(lit_rlvr, *REPLAY, *UNVALIDATED, "--model.init_args.model", "other", "--dry-run")  # no weights to compare


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "more"),
    [("fsdp2", (*DYNAMIC, *RECORD)), ("ddp", (*STREAMING, *DYNAMIC))],
    ids=["fsdp2", "stale"],
)
def test_two_processes_replay_what_two_recorded(
    run_folder: Path, lit_rlvr: CLI, strategy: str, more: tuple[str, ...]
) -> None:
    """Groups are balanced over the processes after sampling, so each has other groups than it sampled."""
    options = (*more, *UNVALIDATED)
    two = (*FIT, *STRATEGIES[strategy], *options)
    in_two_processes(run_folder, two, [*two, *REPLAY])
    assert digest(run_folder / "again") == digest(run_folder / "run")
    fit(
        lit_rlvr,
        *options,
        "--rollouts-from",
        "run",
        *to("alone"),
        status=2,
        says="run was recorded with processes 2, this run has 1; use the same",
    )


@pytest.mark.slow
def test_prompts_get_their_images_from_the_data(run_folder: Path, vlm_folder: Path, lit_rlvr: CLI) -> None:
    write_config(run_folder / "tiny.yaml", pictures_config(vlm_folder, run_folder / "run"))
    options = ("--rollout.rewards", json.dumps([judged_as_is("first_token")]), "--rollout.group_size", "4")
    fit(lit_rlvr, *options, *RECORD)
    fit(lit_rlvr, *options, *REPLAY)
    assert all(float(row["train/grad_norm"]) > 0 for row in metrics(run_folder / "again"))
    assert digest(run_folder / "again") == digest(run_folder / "run")
