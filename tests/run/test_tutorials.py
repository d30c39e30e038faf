"""The tutorials' scripts and the notebook run, and learn; their proofs and configs are checked in the quick suite."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from lit_rlvr.commands.check.parity import load_algorithms
from lit_rlvr.commands.check.replay import replay
from lit_rlvr.types import Completion, Sample

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs/tutorials"
NOTEBOOK, FROM_TRL = ROOT / "notebooks/quickstart.ipynb", ROOT / "notebooks/from_trl.ipynb"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], ModuleType]:
    """Imports a tutorial's script as the config's class paths do, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(TUTORIALS)
    return lambda name: __import__(name)


def test_the_reward_of_the_own_task_reads_the_end(script: Callable[[str], ModuleType]) -> None:
    is_right = script("own_task").is_right
    said = ("14+15=29, 29-2=27", "27.\n", "It is 27", "27 or 29", "127", "", "1.7", "2.7")
    for answer, expected in (("27", [True] * 3 + [False] * 5), ("2.7", [False] * 7 + [True])):
        sample = Sample("a", "How many are left?", answer)
        assert [is_right(Completion(text, (1,), "stop"), sample) for text in said] == expected


def test_the_worked_answers_of_the_own_task_are_right(script: Callable[[str], ModuleType]) -> None:
    module = script("own_task")
    rows = module.make_rows()
    assert len({row["question"] for row in rows}) == len(rows) > 1000
    for row in rows:
        had, got, found = map(int, re.findall(r"\d+", row["question"]))
        total = had + got + found
        steps = re.findall(r"(\d+)\+(\d+)=(\d+)", row["worked"])
        assert steps == [(str(had), str(got), str(had + got)), (str(had + got), str(found), str(total))]
        assert row["answer"] == str(total)
        assert module.is_right(Completion(row["worked"], (1,), "stop"), Sample("a", row["question"], row["answer"]))


def test_the_algorithm_is_proved_and_a_broken_one_is_not(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("own_algorithm")
    batch, algorithms = module.frozen_batch(), load_algorithms(TUTORIALS / "own_algorithm.yaml")
    module.prove(batch, replay(batch, algorithms))
    algorithms["spo"].clip = 0.21
    with pytest.raises(AssertionError):
        module.prove(batch, replay(batch, algorithms))


@pytest.mark.parametrize("name", ["own_task", "vision"])
def test_configs_parse(name: str, script: Callable[[str], ModuleType], lit_rlvr: Any) -> None:
    script(name)
    with pytest.raises(SystemExit) as end:
        lit_rlvr("fit", "--config", TUTORIALS / f"{name}.yaml", "--print_config")
    assert end.value.code == 0


def outputs(notebook: Any) -> str:
    """What the cells printed."""
    return "\n".join(found.get("text", "") for cell in notebook.cells for found in cell.get("outputs", []))


@pytest.mark.parametrize(
    ("path", "said"),
    [(NOTEBOOK, r"held-out accuracy 0\.\d+ -> 0\.\d+"), (FROM_TRL, r"(?s)(mean reward 0\.\d+ -> 0\.\d+.*){3}")],
)
def test_the_saved_notebooks_have_their_outputs_and_no_noise(path: Path, said: str) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert re.search(said, outputs(notebook))
    assert not re.search(r"[Ww]arning|Traceback|(?:^|[\s\"'(])/\w+/", outputs(notebook))


@pytest.mark.parametrize("path", [NOTEBOOK, FROM_TRL])
def test_the_notebooks_links_lead_somewhere(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        for target in re.findall(r"\]\(([^)]+)\)", cell.source) if cell.cell_type == "markdown" else []:
            assert (path.parent / target).is_file(), target


def run_notebook(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a notebook anew in a folder, with few steps; return it."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
            cell.source = cell.source.replace('"smoke/sums", 120', '"smoke/sums", 8')
            cell.source = re.sub(r"max_steps(=|: )25", r"max_steps\g<1>10", cell.source)
    return NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.exhaustive
def test_grpo_trainer_and_fit_both_learn_in_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = run_notebook(FROM_TRL, tmp_path, monkeypatch)
    found = [(float(a), float(b)) for a, b in re.findall(r"mean reward ([\d.]+) -> ([\d.]+)", outputs(notebook))]
    assert len(found) == 3 and all(after > before for before, after in found)
    assert "the same, bit for bit" in outputs(notebook)
    assert "did you mean 'lr'?" in outputs(notebook) and "data: missing" in outputs(notebook)


@pytest.mark.exhaustive
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pass@8" in outputs(run_notebook(NOTEBOOK, tmp_path, monkeypatch))
    assert (tmp_path / "runs/first/exported/model.safetensors").is_file()
