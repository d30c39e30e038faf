"""The documents say what the code does: README's code runs, its configs parse, the reference is current."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_rlvr import algorithms
from lit_rlvr.configs import config_folder
from lit_rlvr.main import COMMANDS, run
from lit_rlvr.reference import reference

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_reference_is_current() -> None:
    assert (ROOT / "docs/reference.md").read_text() == reference(), (
        "run: python -m lit_rlvr.reference > docs/reference.md"
    )


def test_every_option_has_a_meaning() -> None:
    empty = [line for line in reference().splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert not empty


def test_readme_shows_every_command_and_files_exist() -> None:
    for command in COMMANDS:
        assert f"lit-rlvr {command}" in README, command
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_readme_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", README, re.M):
        assert f"\n{target}:" in makefile, target


@pytest.mark.parametrize("part", ["data", "images", "reward", "function", "advantage", "algorithm"])
def test_readme_plug_points_run(part: str, tmp_path: Path, tiny_model_folder: Path, vlm_folder: Path) -> None:
    """Each part of README's `my_task`, used from another folder by its class_path alone."""
    parts = {
        "data": ["--data", "my_task.Reverse", "--data.init_args.prompts_per_step", "2"],
        "images": [
            "--data",
            "my_task.Clocks",
            "--data.init_args.prompts_per_step",
            "2",
            "--model.init_args.model",
            str(vlm_folder),
        ],
        "reward": ["--rollout.rewards", "[{class_path: my_task.EndsRight}]"],
        "function": ["--rollout.rewards", "[my_task.score]"],
        "advantage": ["--model.init_args.advantage", "my_task.sign"],
        "algorithm": ["--model", "my_task.Plain", "--model.init_args.lr", "1e-3"],
    }
    code = "\n".join(blocks("python")) + (
        "\n\ndef score(completion, sample):\n"
        "    return RewardResult(float(len(completion.text)), correct=sample.answer in completion.text)\n"
    )
    (tmp_path / "my_task.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", "from lit_rlvr.main import main; main()", "fit", "--config", "quickstart",
         "--model.init_args.model", str(tiny_model_folder), "--rollout.engine", "hf", "--trainer.precision", "32-true",
         "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--trainer.default_root_dir", "run",
         *parts[part]],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "summary.json").is_file()


def test_readme_yaml_parses() -> None:
    for block in blocks("yaml"):
        assert isinstance(yaml.safe_load(block), dict)


CONFIGS = [p for p in sorted(config_folder().rglob("*.yaml")) if p.parent.name not in ("suites", "studies")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(path.relative_to(config_folder()).with_suffix(""))
    stack = ["--config", "quickstart"] if path.parent.name == "strategy" or name.startswith("studies/base/") else []
    with pytest.raises(SystemExit) as stop:
        run(["fit", *stack, "--config", name, "--print_config"])
    assert stop.value.code == 0
    assert "class_path: lit_rlvr.algorithms" in capsys.readouterr().out


def test_readme_has_no_gaps() -> None:
    assert "@@" not in README and "TODO" not in README


def code_lines(path: Path) -> int:
    """Lines that are neither blank, comment nor docstring."""
    tree, text = ast.parse(path.read_text()), path.read_text().splitlines()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            docs |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return sum(
        1 for i, line in enumerate(text, 1) if line.strip() and not line.strip().startswith("#") and i not in docs
    )


@pytest.mark.parametrize("name", [name for name in algorithms.__all__ if name != "RLVRModule"])
def test_an_algorithm_is_a_small_file(name: str) -> None:
    assert code_lines(Path(inspect.getfile(getattr(algorithms, name)))) <= 40
