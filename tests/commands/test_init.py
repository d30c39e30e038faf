"""`lit-rlvr init`: what it writes passes its own tests, can fail them, and trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import CLI, launch

from lit_rlvr.commands.init.command import KINDS, init

ROOT = Path(__file__).parents[2]


FEW = ("--model.init_args.model", "tiny-llama", "--rollout.engine", "hf", "--trainer.max_steps", 2,
       "--warm_start.steps", 1, "--warm_start.checked", 8, "--data.init_args.prompts_per_rollout", 2,
       "--data.init_args.evaluation.limit", 4)  # fmt: skip
BREAKS = {
    "task": ("correct=text == expected", "correct=right > 0"),
    "algorithm": ("x.token_weight, x.mask)", "x.mask / x.mask.sum().clamp(min=1), x.mask)"),
    "environment": ("Observation(self.number)", "Observation(self.number[::-1])"),
}
"""Kind -> a line of its module, and a mistake in it."""


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in a folder, as its user would."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LIT_RLVR_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def made(root: Path, name: str) -> dict[str, Path]:
    """Kind -> a project of it."""
    folders = {kind: root / f"{name}-{kind}" for kind in KINDS}
    for kind, folder in folders.items():
        written = {path.name for path in init(folder, kind)}
        assert written == {"README.md", "config.yaml", f"{name}_{kind}.py", f"test_{name}_{kind}.py"}
        assert not any("my_task" in path.read_text() for path in folder.iterdir())
    return folders


@pytest.mark.slow
def test_every_project_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    for kind, folder in made(tmp_path, "tea").items():
        trained = launch(["fit", "--config", "config.yaml", *FEW], folder)
        assert trained.returncode == 0, trained.stderr
        assert json.loads((folder / f"runs/tea_{kind}/summary.json").read_text())["steps"] == 2


@pytest.mark.slow
def test_every_project_s_tests_pass_and_notice_a_mistake(tmp_path: Path) -> None:
    made(tmp_path, "right")
    for kind, folder in made(tmp_path, "wrong").items():
        right, wrong = BREAKS[kind]
        code = folder / f"wrong_{kind}.py"
        assert right in code.read_text()
        code.write_text(code.read_text().replace(right, wrong))
    tested = python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert tested.returncode == 1 and "FAILED right" not in tested.stdout, tested.stdout
    for kind in KINDS:
        assert f"FAILED wrong-{kind}/test_wrong_{kind}.py" in tested.stdout, kind


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("3d-task", "cannot be the name of a Python module; choose another, such as my_task"),
        ("class", "cannot be the name of a Python module; choose another, such as my_task"),
        ("задача n", "cannot be the name of a Python module; choose another, such as my_task"),
        ("torch", "installed module torch instead; choose another, such as my_task"),
        ("json", "installed module json instead; choose another, such as my_task"),
    ],
)
def test_a_name_that_cannot_be_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lit_rlvr: CLI, folder: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = lit_rlvr("init", folder)
    assert (done.status, said in done.err, done.err.count("\n")) == (2, True, 1)
    assert not list(tmp_path.iterdir())


def test_nothing_of_a_user_s_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lit_rlvr: CLI) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty_one").mkdir()
    assert "full is not empty" in lit_rlvr("init", "full").err
    assert "file is a file" in lit_rlvr("init", "file").err
    assert "--kind: there is no kind 'tsak'" in lit_rlvr("init", "tea", "--kind", "tsak").err
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes"]
    done = lit_rlvr("init", "empty_one", "--kind", "algorithm")
    assert done.status == 0 and "empty_one/empty_one.py" in done.out
