"""metrics.csv: complete, atomic, and exact across resumes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stub_judge import StubJudge
from tiny import save_model, tiny_moe
from tiny_fit import Recording, fit as fit_here
from tiny_rewards import judged_as_is
from tiny_runs import fit, to

from lit_rlvr import algorithms
from lit_rlvr.common.run_files import read_metrics
from lit_rlvr.errors import UserError
from lit_rlvr.run.loggers import MetricsFile
from lit_rlvr.run.metric_table import METRICS, find_metric


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_a_step_whatever_is_logged_when(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "run" / "metrics.csv")
    log.log_metrics({"b": 1.0}, step=2)
    log.log_metrics({"a": 0.1}, step=1)
    log.log_metrics({"c": 3}, step=2)
    log.save()
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines() == ["step,a,b,c", "1,0.1,,", "2,,1.0,3.0"]
    assert log.rows == {2: {"b": 1.0, "c": 3.0}, 1: {"a": 0.1}}
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_resumed_file_drops_later_rows_and_keeps_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    value = 0.1 + 0.2
    first = MetricsFile(path)
    for step in range(1, 5):
        first.log_metrics({"x": value * step}, step=step)
    first.finalize("failed")
    again = MetricsFile(path)
    again.resume(2)
    again.log_metrics({"x": -1.0, "new": 5.0}, step=3)
    again.save()
    rows = read(path)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [float(row["x"]) for row in rows] == [value, value * 2, -1.0]
    assert [row["new"] for row in rows] == ["", "", "5.0"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"x": 1.0}, step=1)
    log.save()
    log.log_metrics({"x": 2.0}, step=2)

    def full(self: csv.DictWriter, row: dict[str, float]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerow", full)
    with pytest.raises(OSError, match="No space"):
        log.save()
    assert [row["x"] for row in read(tmp_path / "metrics.csv")] == ["1.0"]


@pytest.mark.parametrize("line", ["garbage", "2,x", "2,0.5,0.5", "2,\0", "\xff"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.csv").write_text(f"step,loss\n1,0.5\n{line}\n3,0.5\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"metrics\.csv, line 3: not a row of a run; mend the file"):
        MetricsFile(tmp_path / "metrics.csv").resume(3)


ONE = ("--trainer.max_steps", 1, "--trainer.limit_val_batches", 0)
DISPUTABLE = {"class_path": "MathAnswer", "init_args": {"second_opinion": True}}
RUNS: dict[str, tuple[Any, ...]] = {
    "plain": (
        *("--model.init_args.kl.coef", 0.1, "--model.init_args.lr", "auto"),
        *("--model.init_args.importance.correction", "token_mis", "--model.init_args.importance.floor", 0.5),
        *("--rollout.evaluation", "{samples: 2, sampling: {temperature: 1}, greedy: true}"),
        *("--data.init_args.chat.prefill", "<think>", "--model.init_args.compute.tokens_per_microbatch", 120),
    ),
    "reference": (
        *("--model", "AAPO", "--model.init_args.advantage", "{class_path: AGRAE, init_args: {base: aapo}}"),
        *ONE,
    ),
    "rewards": (
        *("--model", "APMPO", "--rollout.safeguards.max_failure_rate", 1, "--rollout.staleness", 1, "--rollout.engine"),
        *("tiny_engines.Streaming", "--trainer.max_steps", 3, "--trainer.limit_val_batches", 0, "--rollout.rewards"),
        json.dumps([judged_as_is("broken_for_some"), judged_as_is("in_steps"), DISPUTABLE]),
    ),
    "turns": (
        *("--model", "DAPO", "--model.init_args.dynamic_sampling", "true", "--rollout.environment"),
        *("tiny_environments.Echo", "--rollout.sampling.max_turns", 2, "--rollout.sampling.max_observation_tokens", 40),
        *("--rollout.rewards", "null", "--model.init_args.loss.observation_coef", 0.1, *ONE),
    ),
    "sets": (
        *("--data", "Mixture", "--data.init_args.curriculum", "{epochs: 1}", "--data.init_args.sets"),
        *(json.dumps([{"class_path": "Arithmetic", "init_args": {"name": name}} for name in ("one", "other")]), *ONE),
    ),
    "sft": ("--model", "SFT", "--trainer.max_steps", 1),
}
"""Runs that log all metrics of the table between them, but those of ELSEWHERE and of some losses."""
LOSSES = ("ClipCov", "KLCov", "M2PO", "FIPO", "DRO", "TOPR", "VESPO")
ELSEWHERE = (
    "val/sql/accuracy/a/b",
    "reward/easyr1/format",
    "time/checkpoint_write",
    "train/staleness/stale_cache",
    "train/teacher_kl",
    "train/teacher_divergence",
    "val/accuracy_before_warm_start",
    "reward/instruction_following/instruction_strict",
    "reward/instruction_following/prompt_strict",
    "reward/group_judge/place_bias",
    "reward/group_judge/split",
    "rollout/agent/sequences",
    "rollout/agent/forked_tokens",
    "rollout/agent/auxiliary",
    "rollout/agent/lost",
    "rollout/agent/refused",
    "rollout/agent/timeout",
    "rollout/agent/crashed",
    "rollout/agent/silent",
)
"""Metrics of data with categories, of functions that return a dict, of FSDP2, of servers that keep their cache, of
teachers, of warm starts, of instructions, of a `GroupJudge`, and of agents."""


@pytest.mark.slow
def test_every_metric_that_runs_log_is_in_the_table(
    run_folder: Path, lit_rlvr: Callable[..., Any], tiny_model_folder: Path
) -> None:
    logged = set()
    for name, options in RUNS.items():
        fit(lit_rlvr, *options, *to(name))
        logged |= {metric for row in read_metrics(run_folder / name / "metrics.csv").values() for metric in row}
    with StubJudge(lambda text, fields: 1) as stub:
        judge = {"class_path": "PointwiseJudge", "init_args": {"server": stub.server()}}
        fit(lit_rlvr, *ONE, "--rollout.rewards", json.dumps([judged_as_is("first_token"), judge]), *to("judged"))
        logged |= {metric for row in read_metrics(run_folder / "judged" / "metrics.csv").values() for metric in row}
    for name in LOSSES:
        algorithm: Any = type(f"Recording{name}", (Recording, getattr(algorithms, name)), {})
        _, seen = fit_here(tiny_model_folder, run_folder / name, algorithm=algorithm)
        logged |= seen.metrics[0].keys()
    moe = save_model(tiny_moe(), run_folder / "experts")
    _, seen = fit_here(moe, run_folder / "routes", replay_routes=True, loss={"balance_coef": 0.1})
    logged |= seen.metrics[0].keys()
    found = {name: find_metric(name) for name in [*logged, *ELSEWHERE]}
    assert [name for name, metric in found.items() if metric is None] == []
    table = {metric.name for metrics in METRICS.values() for metric in metrics}
    assert {metric.name for metric in found.values() if metric} == table
