"""Trackers with their real packages, offline: what each has of a run that was stopped and resumed."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import CLI, FIT, STRATEGIES, completions, fit, in_two_processes, pictures_config, summary, write_config
from tracker_records import Kept, Row, mlflow_store, tensorboard_rows, trackio_store, wandb_offline

from lit_rlvr.cli.main import run as command_line
from lit_rlvr.common.run_files import read_metrics

STOPPED, RESUMED, LAST = 4, 2, 6
"""Steps: where the first process ended, the checkpoint the second one went on from, and where that ended."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, vlm_folder: Path) -> Iterator[Path]:
    """A run on pictures with all trackers: four steps, then steps 3 to 6 from the checkpoint of step 2."""
    here, environment, path = tmp_path_factory.mktemp("tracked"), dict(os.environ), list(sys.path)
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    folder = here / "runs" / "pictures"
    config = pictures_config(vlm_folder, folder) | {
        "checkpoint": {"every": 2, "keep": 9},
        "run": {"show_every": 0, "save_prompts": 1},
        "trackers": [
            {"class_path": "Wandb", "init_args": {"samples_every": 3, "options": {"tags": ["tiny"]}}},
            {"class_path": "MLflow", "init_args": {"samples_every": 3}},
            {"class_path": "Trackio", "init_args": {"samples_every": 3}},
        ],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        fit = ["fit", "--config", str(write_config(here / "tiny.yaml", config))]
        assert command_line([*fit, "--trainer.max_steps", str(STOPPED)]) == 0
        checkpoint = folder / f"checkpoints/step-{RESUMED:06d}.ckpt"
        assert command_line([*fit, "--trainer.max_steps", str(LAST), "--ckpt_path", str(checkpoint)]) == 0
        yield folder
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)


READERS: dict[str, Callable[[Path], Kept]] = {
    "wandb": lambda run: wandb_offline(run / "trackers"),
    "mlflow": lambda run: mlflow_store(f"sqlite:///{run / 'trackers/mlflow.db'}"),
    "trackio": lambda run: trackio_store(),
}


@pytest.fixture(scope="module", params=list(READERS))
def kept(request: pytest.FixtureRequest, run: Path) -> Kept:
    return READERS[request.param](run)


@pytest.mark.slow
def test_each_step_is_there_once_with_the_metrics_of_the_file(run: Path, kept: Kept) -> None:
    assert len(kept.ids) == 1
    assert_rows_of_the_file(kept.rows, run, set())


@pytest.mark.slow
def test_tensorboard_has_each_step_once_with_the_metrics_of_the_file(run: Path) -> None:
    assert_rows_of_the_file(tensorboard_rows(run / "tensorboard"), run, {"epoch"})


def assert_rows_of_the_file(rows: list[tuple[int, Row]], run: Path, left_out: set[str]) -> None:
    assert [step for step, _ in rows] == list(range(1, LAST + 1))
    for (step, values), wanted in zip(rows, read_metrics(run / "metrics.csv").values(), strict=True):
        assert set(values) == set(wanted) - left_out, step
        for name, value in values.items():
            if not name.startswith("time/") and name != "rollout/tokens_per_second":  # of another attempt
                assert value == pytest.approx(wanted[name], rel=1e-6), (step, name)


@pytest.mark.slow
def test_the_samples_are_those_of_the_run_folder(run: Path) -> None:
    for kept in (READERS["wandb"](run), READERS["trackio"](run)):
        assert sorted(kept.tables) == [1, 3, 6], "the first iteration and every third"
        for step, table in kept.tables.items():
            wanted = [record for record in completions(run) if record["step"] == step]
            assert len(table) == len(wanted) == 2
            for shown, record in zip(table, wanted, strict=True):
                for name in ("id", "answer", "reward", "correct", "advantage", "completion"):
                    assert shown[name] == record[name], name
                assert json.loads(shown["images"]) == record["images"]


@pytest.mark.slow
def test_the_settings_are_there(run: Path, kept: Kept) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    flat = "rollout/group_size" in kept.config
    assert kept.config["rollout/group_size"] == "2" if flat else kept.config["rollout"] == settings["rollout"]
    assert kept.name.startswith("pictures")


@pytest.mark.slow
def test_the_names_of_the_runs_are_in_one_file(run: Path) -> None:
    known = json.loads((run / "trackers/runs.json").read_text())
    assert set(known) == {"wandb", "mlflow", "trackio"}
    assert {entry["last_step"] for entry in known.values()} == {LAST}
    assert {known["wandb"]["id"]} == wandb_offline(run / "trackers").ids
    assert {known["mlflow"]["id"]} == mlflow_store(f"sqlite:///{run / 'trackers/mlflow.db'}").ids


# ---- a tracker of one's own -------------------------------------------------------------------------------


def notes(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run/trackers/notes.jsonl").read_text().splitlines()]


def own(**options: Any) -> tuple[str, str]:
    return "--trackers", json.dumps({"class_path": "tiny_trackers.Notes", "init_args": options})


def said(folder: Path, what: str) -> list[Any]:
    return [line[what] for line in notes(folder) if what in line]


def test_a_tracker_that_fails_gets_what_it_missed_at_the_end(run_folder: Path, lit_rlvr: CLI) -> None:
    result = fit(lit_rlvr, *own(fails=[2], samples_every=2))
    assert summary(run_folder / "run")["steps"] == 6
    assert said(run_folder, "step") == [0, 1, 2, 3, 4, 5, 6]
    assert said(run_folder, "asked") == [0, 1, 2, 2, 3, 4, 5, 6], "it is left alone until then"
    assert [line["step"] for line in notes(run_folder) if line.get("samples")] == [1, 2, 4, 6]
    assert result.err.count("notes fails after step 1: OSError: no space left") == 1


@pytest.mark.slow
def test_a_tracker_added_on_resume_gets_the_whole_run(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, "--trainer.max_steps", 3)
    fit(lit_rlvr, *own(), "--ckpt_path", "last")
    assert (said(run_folder, "started"), said(run_folder, "step")) == ([None], [0, 1, 2, 3, 4, 5, 6])
    fit(lit_rlvr, *own(), "--ckpt_path", "last", "--trainer.max_steps", 7)
    fit(lit_rlvr, *own(), "--ckpt_path", "last", "--trainer.max_steps", 7)  # nothing left to train
    assert said(run_folder, "started") == [None, "note-1"] and said(run_folder, "step")[7:] == [7]
    assert said(run_folder, "failed") == [False, False]


def test_a_run_that_is_replaced_is_a_new_run(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, *own(), "--trainer.max_steps", 1)
    fit(lit_rlvr, *own(), "--trainer.max_steps", 2, "--overwrite", "true")
    assert said(run_folder, "started") == [None, None], "a new one, after the first run's notes, which are the user's"
    assert said(run_folder, "step") == [0, 1, 0, 1, 2]


@pytest.mark.slow
def test_of_two_processes_only_the_first_sends(run_folder: Path) -> None:
    in_two_processes(run_folder, [*FIT, *STRATEGIES["ddp"], *own(samples_every=3)])
    assert said(run_folder, "started") == [None] and said(run_folder, "step") == [0, 1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in notes(run_folder) if line.get("samples")] == [1, 3, 6]
    assert said(run_folder, "failed") == [False]


# ---- choosing ---------------------------------------------------------------------------------------------


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("[wandb, mlfow]", "trackers: 'mlfow' is not known; did you mean 'mlflow'?"),
        ("tiny_trackers.Missing", "trackers: not_there is not installed; pip install not_there"),
        ("{class_path: Wandb, init_args: {projekt: x}}", "Wandb has no option 'projekt'"),
    ],
)
def test_a_wrong_tracker_is_one_line(run_folder: Path, lit_rlvr: CLI, chosen: str, message: str) -> None:
    result = fit(lit_rlvr, "--trackers", chosen, status=2, says=message)
    assert len(result.err.strip().splitlines()) == 1, result.err
