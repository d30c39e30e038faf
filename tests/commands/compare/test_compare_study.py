"""What a study is read as, what is refused, and which folder it may go on in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_rlvr.commands.compare.command import compare
from lit_rlvr.commands.compare.study import Cell, Study, load_study
from lit_rlvr.commands.compare.study_folder import StudyFolder, evaluates_start, next_command
from lit_rlvr.configs import merge
from lit_rlvr.errors import UserError

STUDY: dict[str, Any] = {
    "name": "s",
    "base": ["base.yaml", "second.yaml"],
    "tasks": {"easy": {"base": "task.yaml", "data": {"init_args": {"high": 5, "seed": 1}}}, "hard": {}},
    "cells": {
        "a": None,
        "b": {"base": "cell.yaml", "model": {"init_args": {"lr": 3.0}}, "data": {"init_args": {"high": 9}}},
    },
    "seeds": [4, 7],
    "baseline": "a",
    "budget": {"steps": 10},
}
FILES: dict[str, dict[str, Any]] = {
    "base.yaml": {
        "model": {"class_path": "GRPO", "init_args": {"lr": 1.0, "clip_low": 0.1}},
        "trainer": {"max_epochs": 3},
    },
    "second.yaml": {"model": {"init_args": {"clip_low": 0.2, "optim": {"weight_decay": 0.5}}}},
    "task.yaml": {
        "model": {"init_args": {"optim": {"weight_decay": 0.6}}},
        "data": {"init_args": {"high": 1, "low": 2}},
    },
    "cell.yaml": {
        "model": {"class_path": "DAPO", "init_args": {"lr": 2.0}},
        "data": {"init_args": {"low": 3, "seed": 2}},
    },
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write STUDY with other keys (None drops one) next to its bases."""
    for name, config in FILES.items():
        (tmp_path / name).write_text(yaml.safe_dump(config))

    def written(**changes: Any) -> str:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in (STUDY | changes).items() if v is not None}))
        return str(path)

    return written


def test_layers_lie_on_each_other_in_order(write: Callable[..., str]) -> None:
    study = load_study(write())
    assert [str(cell.folder) for cell in study.cells][:5] == [
        "runs/easy/a/seed-4",
        "runs/easy/b/seed-4",
        "runs/hard/a/seed-4",
        "runs/hard/b/seed-4",
        "runs/easy/a/seed-7",
    ]
    assert (study.tasks, study.names, study.seeds) == (["easy", "hard"], ["a", "b"], [4, 7])
    assert study.metric == "val/accuracy" and study.budget == ("steps", 10)
    easy_a, easy_b, hard_a, hard_b = (cell.config for cell in study.cells[:4])
    ends = {"max_epochs": -1, "max_steps": 10}
    assert easy_a == {
        "model": {"class_path": "GRPO", "init_args": {"lr": 1.0, "clip_low": 0.2, "optim": {"weight_decay": 0.6}}},
        "data": {"init_args": {"low": 2, "high": 5, "seed": 1}},
        "trainer": ends,
        "budget": {"samples": None, "tokens": None},
        "seed_everything": 4,
    }
    assert easy_b["model"] == {
        "class_path": "DAPO",
        "init_args": {"lr": 3.0, "clip_low": 0.2, "optim": {"weight_decay": 0.6}},
    }
    assert easy_b["data"]["init_args"] == {"low": 3, "high": 9, "seed": 1}, "the task's own lie over the cell's base"
    assert hard_a["model"]["init_args"]["optim"]["weight_decay"] == 0.5 and "data" not in hard_a
    assert (
        hard_b["data"]["init_args"] == {"low": 3, "high": 9, "seed": 2}
        and study.cells[7].config["seed_everything"] == 7
    )


@pytest.mark.parametrize(("unit", "other"), [("samples", "tokens"), ("tokens", "samples")])
def test_what_is_generated_ends_a_run_instead_of_its_steps(write: Callable[..., str], unit: str, other: str) -> None:
    config = load_study(write(budget={unit: 500})).cells[0].config
    assert config["trainer"] == {"max_steps": -1, "max_epochs": -1} and config["budget"] == {unit: 500, other: None}


REFUSED = {
    "unknown key": ({"cell": {}}, "unknown key 'cell'; did you mean 'cells'"),
    "no name": ({"name": None}, "`name` is missing"),
    "no cells": ({"cells": {}}, "cells: give a mapping of names"),
    "no such baseline": ({"baseline": "c"}, "baseline: 'c' is not one of the cells a, b"),
    "several baselines": ({"baseline": ["a", "b"]}, "baseline: ['a', 'b'] is not one of the cells a, b"),
    "two budgets": ({"budget": {"steps": 1, "tokens": 2}}, "budget: give one of steps, samples, tokens"),
    "no number": ({"budget": {"steps": "many"}}, "budget: give one of"),
    "nothing to use": ({"budget": {"samples": 0}}, "budget: give one of"),
    "seeds twice": ({"seeds": [1, 1]}, "seeds: [1, 1] is not a list of different"),
    "seeds": ({"seeds": 3}, "seeds: 3 is not a list"),
    "no folder": ({"cells": {"a": {}, "a/b": {}}}, "cells.a/b: a name may have only letters"),
    "no mapping": ({"cells": {"a": 3}}, "cells.a: a config is a mapping"),
    "key of a cell": ({"cells": {"a": {"modle": {}}}}, "cells.a: unknown key 'modle'; did you mean 'model'"),
    "seed of a cell": ({"cells": {"a": {"seed_everything": 1}}}, "cells.a: unknown key 'seed_everything'"),
    "end of a cell": ({"cells": {"a": {"trainer": {"max_steps": 1}}}}, "cells.a: trainer.max_steps is set by the"),
    "base of a task": ({"tasks": {"t": {"base": "nowhere"}}}, "there is no file 'nowhere'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_study_is_one_clear_line(write: Callable[..., str], case: str) -> None:
    changes, said = REFUSED[case]
    with pytest.raises(UserError) as error:
        load_study(write(**changes))
    assert said in str(error.value) and "\n" not in str(error.value)


WRONG_CELLS = {
    "class": ({"model": {"class_path": "GRPOO"}}, "model: there is no class 'GRPOO'; did you mean 'GRPO'"),
    "range": ({"model": {"init_args": {"clip_low": -1}}}, "model.clip_low: -1"),
}


@pytest.mark.first_case_fast
@pytest.mark.parametrize("case", WRONG_CELLS)
def test_a_wrong_cell_is_refused_before_any_trains(write: Callable[..., str], tmp_path: Path, case: str) -> None:
    wrong, said = WRONG_CELLS[case]
    right = {"data": {"class_path": "Arithmetic"}, "model": {"class_path": "GRPO"}}
    path = write(base=None, tasks=None, cells={"a": right, "b": merge(right, wrong)})
    with pytest.raises(UserError) as error:
        compare(load_study(path), tmp_path / "out")
    assert str(error.value).startswith("STUDY: task, b: ") and said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_models_are_evaluated_on_the_gpus_of_their_cells(tmp_path: Path) -> None:
    """The trained one, and the one before training, unless a warm start made it, which has no name."""
    config = {
        "model": {"init_args": {"model": "org/name"}},
        "rollout": {"engine": "vllm"},
        "trainer": {"devices": 8, "accelerator": "gpu"},
    }
    cell = Cell("t", "base", 0, config)
    study = Study("s", (cell,), "base", ("steps", 1), "val/accuracy", {"math": ["math500"]}, "agrae")
    run, before = tmp_path / cell.folder, tmp_path / "runs/t/before training"
    run.mkdir(parents=True)
    (run / "summary.json").write_text('{"stopped": null}')
    asked = ["--suite", '["math500"]', "--engine", "vllm", "--devices", "8", "--protocol", "agrae"]
    for model, more in (
        (str(run), ["--out", str(run / "evaluation")]),
        ("org/name", ["--like", str(run), "--out", str(before)]),
    ):
        command = next_command(study, cell, tmp_path)
        assert command is not None and command.arguments == ["evaluate", "--model", model, *asked, *more]
        command.finish()
    assert next_command(study, cell, tmp_path) is None
    warm = replace(cell, config=config | {"warm_start": {"steps": 9}})
    assert not evaluates_start(replace(study, cells=(warm,)), warm)


def test_a_name_that_is_none(tmp_path: Path, lit_rlvr: Callable[..., Any]) -> None:
    lit_rlvr(
        "compare",
        "studies/smok",
        "--out",
        tmp_path,
        status=2,
        says="STUDY: there is no file 'studies/smok'; did you mean studies/smoke",
    )
    lit_rlvr("compare", "studies/smoke", "--out", tmp_path, "--jobs", 0, status=2, says="--jobs: 0 is not positive")


def begin(folder: StudyFolder) -> None:
    """Leave what a run leaves in every cell's folder."""
    for cell in folder.study.cells:
        (folder.root / cell.folder / "metrics.csv").write_text("step\n0\n")


def test_the_same_study_and_a_larger_one_go_on_in_its_folder(write: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(StudyFolder(out, load_study(write())))
    StudyFolder(out, load_study(write()))
    larger = {"seeds": [4, 7, 1], "cells": STUDY["cells"] | {"c": {}}, "metric": "rollout/reward", "baseline": "c"}
    assert len(StudyFolder(out, load_study(write(**larger))).states) == 3 * 2 * 3


CHANGED = {
    "name": ({"name": "t"}, "holds the study 's', not 't'"),
    "cell": (
        {"cells": {"a": {"model": {"init_args": {"lr": 1.5}}}, "b": STUDY["cells"]["b"]}},
        "model.init_args.lr was 1.0, is 1.5",
    ),
    "budget": ({"budget": {"steps": 11}}, "trainer.max_steps was 10, is 11"),
    "a cell less": ({"cells": {"a": {}}}, "which the study no longer has"),
    "a seed less": ({"seeds": [4]}, "holds runs/easy/a/seed-7, which the study no longer has"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_study_is_refused(write: Callable[..., str], tmp_path: Path, case: str) -> None:
    out = tmp_path / "out"
    begin(StudyFolder(out, load_study(write())))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    changes, said = CHANGED[case]
    with pytest.raises(UserError, match="--out") as error:
        StudyFolder(out, load_study(write(**changes)))
    assert said in str(error.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "name",
    [
        "results.json",
        "results.md",
        "runs/easy/a/seed-4/metrics.csv",
        "metrics.csv",
        "checkpoints",
        "summary.json",
    ],
)
def test_files_of_something_else_are_left_alone(write: Callable[..., str], tmp_path: Path, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": 1}')
    with pytest.raises(UserError, match="--out:"):
        StudyFolder(tmp_path / "out", load_study(write()))
    assert path.read_text() == '{"mine": 1}'
