"""Run folders are read as far as they go."""

import json
from pathlib import Path

import pytest
from made_runs import METRICS, make_run, row

from lit_rlvr.commands.report.groups import group_runs
from lit_rlvr.commands.report.prompts import index_completions
from lit_rlvr.commands.report.runs import read_run


def test_a_whole_run(tmp_path: Path) -> None:
    rows = [row(2, "1+1", 0, True), row(2, "1+1", 1, False, completion="\u2028 line \x85 ends")]
    run = read_run(make_run(tmp_path / "run", rows=rows))
    index = index_completions(run)
    assert index.read_group(index.prompts["1+1"].visits[0]) == rows
    assert run.metrics == METRICS and run.notes == []
    assert (run.is_finished, run.seed, run.settings["model"]) == (True, "0", "GRPO")
    assert (run.accuracies, run.number("steps"), run.seconds_per_iteration) == ((0.25, 0.75), 4, 3.25)
    assert run.ends("val/accuracy") == (0.25, 0.75) and run.ends("rollout/reward") == (None, 0.75)


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("config.yaml", "a: [1", "config.yaml cannot be read: while parsing"),
        ("metrics.csv", "step,a\n2,1\n4,x\n,3\n", "metrics.csv cannot be read: "),
        ("metrics.csv", "a\n1\n", "metrics.csv cannot be read: "),
        ("completions.jsonl", '{"step": 2}\n{"st', "completions.jsonl: 2 unreadable lines were left out"),
        ("summary.json", "{", "summary.json cannot be read: Expecting property name"),
        ("config.yaml", None, "there is no config.yaml"),
        ("completions.jsonl", None, "there is no completions.jsonl"),
    ],
)
def test_what_is_broken_is_noted(tmp_path: Path, name: str, content: str | None, note: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    run = read_run(folder)
    index_completions(run)
    assert any(found.startswith(note) for found in run.notes), run.notes


@pytest.mark.parametrize(
    ("summary", "ending"),
    [
        (None, "unfinished, or killed: it has no summary; its metrics reach step 4"),
        ('{"stopped": "stopped by SIGTERM"}', "stopped early, at step 4: stopped by SIGTERM"),
        ('{"stopped": null}', ""),
    ],
)
def test_a_run_knows_how_it_ended(tmp_path: Path, summary: str | None, ending: str) -> None:
    run = make_run(tmp_path / "run")
    (run / "summary.json").unlink()
    if summary is not None:
        (run / "summary.json").write_text(summary)
    assert read_run(run).ending == ending
    assert [ending in problem for problem in group_runs([read_run(run)])[0].problems] == [True] * bool(ending)


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", metrics={2: {"a": float("inf"), "b": 1.0}, 4: {"a": float("nan")}})
    summary = json.loads((folder / "summary.json").read_text()) | {"steps": "many", "accuracy_after": float("nan")}
    (folder / "summary.json").write_text(json.dumps(summary))
    run = read_run(folder)
    assert run.metrics == {2: {"b": 1.0}, 4: {}}
    assert run.number("steps") is None and run.accuracies[1] is None
