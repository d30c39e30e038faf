"""Runs are grouped by what they share, studies by their cells."""

from pathlib import Path

import pytest
from made_runs import config, make_run, make_study

from lit_rlvr.commands.report.groups import read_groups
from lit_rlvr.errors import UserError


def test_runs_that_differ_by_seed_alone_are_one_group(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"grpo_{seed}", config(seed, root=f"grpo_{seed}"))
        make_run(tmp_path / f"hot/seed-{seed}", config(seed, lr=1.0))
    make_run(tmp_path / "dapo-7", config(algorithm="DAPO"))
    names = ["grpo_0", "hot/seed-0", "dapo-7", "grpo_1", "hot/seed-1"]
    title, groups = read_groups([tmp_path / name for name in names])
    assert title == "GRPO, DAPO on Arithmetic"
    assert [(group.name, [run.seed for run in group.runs], group.wanted) for group in groups] == [
        ("grpo", ["0", "1"], 2),
        ("hot", ["0", "1"], 2),
        ("dapo-7", ["0"], 1),
    ]


def test_runs_without_settings_stay_apart(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        (folder / "config.yaml").unlink()
    title, groups = read_groups(folders)
    assert [group.name for group in groups] == ["a", "b"] and title == "a, b"
    title, _ = read_groups([*folders, make_run(tmp_path / "c")])
    assert title == "GRPO on Arithmetic"


def test_a_study_is_grouped_by_cell_and_task(tmp_path: Path) -> None:
    cells = [
        {"name": name, "task": task, "seed": seed, "run": f"runs/{name}-{task}/seed-{seed}"}
        for seed in (0, 1)
        for name in ("grpo", "dapo")
        for task in ("sums", "angles")
    ]
    for cell in cells[:-1]:
        make_run(tmp_path / str(cell["run"]), config(int(str(cell["seed"]))))
    cells[-1] |= {"status": "failed", "error": "no memory"}
    (tmp_path / str(cells[0]["run"]) / "summary.json").unlink()
    title, groups = read_groups([make_study(tmp_path, cells, baseline="grpo")])
    assert title == "a study"
    assert [(g.task, g.name, len(g.runs), g.wanted, g.baseline) for g in groups] == [
        ("angles", "grpo", 2, 2, True),
        ("angles", "dapo", 1, 2, False),
        ("sums", "grpo", 2, 2, True),
        ("sums", "dapo", 2, 2, False),
    ]
    assert groups[1].problems == ["dapo on angles, seed 1: failed: no memory"] and groups[3].problems == []
    assert [problem.rpartition(": ")[2] for problem in groups[2].problems] == [
        "it has no summary; its metrics reach step 4"
    ]


def test_a_cell_that_is_done_but_gone_is_noted(tmp_path: Path) -> None:
    _, groups = read_groups([make_study(tmp_path, [{"name": "grpo", "run": "runs/gone"}])])
    assert (groups[0].runs, groups[0].wanted, "runs/gone holds no run" in groups[0].problems[0]) == ([], 1, True)


def test_a_broken_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(UserError, match=r"study\.json"):
        read_groups([tmp_path])
