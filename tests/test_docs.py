"""The documents say what the code does: their code runs, their configs parse, the reference is current."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from house_map import house_map

from lit_rlvr import algorithms
from lit_rlvr.cli.main import COMMANDS, run
from lit_rlvr.cli.options_page import reference
from lit_rlvr.configs import config_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TOPS = ("lit_rlvr", "datamodules", "tests", "benchmarks", "docs", "configs")
USERS = {"my_task.py", "task.py", "my_env.py", "train.py"}
"""Files that a user of the documents writes."""
OTHERS = {"repo", "include", "weighted_sample"}
"""Options of other programs."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str, *pages: Path) -> list[str]:
    return [block for page in pages for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)]


def test_reference_is_current() -> None:
    assert (ROOT / "docs/reference.md").read_text() == reference(), (
        "run: python -m lit_rlvr.cli.options_page > docs/reference.md"
    )


def test_the_map_is_current() -> None:
    assert (ROOT / "docs/map.md").read_text() == house_map(), "run: python tests/helpers/house_map.py > docs/map.md"


def test_every_file_that_is_named_exists() -> None:
    """In the documents, and in the docstrings and comments of the code: by its path, or by its name alone."""
    tracked = [file for top in TOPS for file in (ROOT / top).rglob("*.*") if "__pycache__" not in file.parts]
    tracked += [file for file in ROOT.iterdir() if file.is_file()]
    known = {"/".join(file.relative_to(ROOT).parts[-k:]) for file in tracked for k in range(1, 5)}
    sources = [page for page in PAGES if page.name != "map.md"]
    sources += [file for file in tracked if file.suffix == ".py" and "tests" not in file.parts]
    missing = [
        f"{source.relative_to(ROOT)}: {name}"
        for source in sources
        for name in re.findall(r"`((?:[\w.]+/)*\w+\.py)`", source.read_text())
        if name not in known and name not in USERS
    ]
    assert not missing


def test_every_proof_that_is_named_exists() -> None:
    """The tests in docs/concepts.md: each stands in a file that the same line links to."""
    page = ROOT / "docs/concepts.md"
    for line in page.read_text().splitlines():
        files = [(page.parent / target).read_text() for target in re.findall(r"\]\(([^)]+\.py)\)", line)]
        for name in re.findall(r"`(test_\w+)`", line):
            assert any(f"def {name}(" in text for text in files), name


def test_every_command_that_is_named_exists() -> None:
    missing = [
        f"{page.name}: lit-rlvr {command}"
        for page in PAGES
        for command in re.findall(r"(?:`|^|\| )lit-rlvr (\w+)", page.read_text(), re.M)
        if command not in {*COMMANDS, "help"}
    ]
    assert not missing


def test_every_option_that_is_named_exists() -> None:
    """`--group.option` of the documents' commands, by the reference and by what the commands themselves take."""
    known = set(re.findall(r"\w+", reference())) | {
        word for file in (ROOT / "lit_rlvr").rglob("*.py") for word in re.findall(r"\w+", file.read_text())
    }
    missing = [
        f"{page.name}: --{option}"
        for page in PAGES
        for option in re.findall(r"--([a-z][\w.]*)", page.read_text())
        for name in [option.split(".")[-1]]
        if name not in known and option not in OTHERS
    ]
    assert not missing


def test_every_option_has_a_meaning() -> None:
    empty = [line for line in reference().splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert not empty


def test_readme_shows_every_command() -> None:
    for command in COMMANDS:
        assert f"lit-rlvr {command}" in README, command


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            file = (page.parent / path) if path else page
            if not target.startswith("https://") and not (file.exists() and (not anchor or anchor in headings(file))):
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_readme_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", README, re.M):
        assert f"\n{target}:" in makefile, target


EACH = """
import sys
from lit_rlvr.cli.main import run
common, parts = sys.argv[1].split("|"), sys.argv[2:]
for part in parts:
    name, *options = part.split("|")
    assert run([*common, *options, "--trainer.default_root_dir", name]) == 0, name
"""


def test_plug_points_run(tmp_path: Path, tiny_model_folder: Path, vlm_folder: Path) -> None:
    """Each part of `my_task` in docs/extend.md, and `my_env` in docs/environments.md, used from another folder by its
    class_path alone."""
    parts = {
        "data": ["--data", "my_task.Reverse", "--data.init_args.prompts_per_step", "2"],
        "images": ["--data", "my_task.Clocks", "--data.init_args.prompts_per_step", "2",
                   "--model.init_args.model", str(vlm_folder)],
        "reward": ["--rollout.rewards", "[{class_path: my_task.EndsRight}]"],
        "function": ["--rollout.rewards", "[my_task.score]"],
        "advantage": ["--model.init_args.advantage", "my_task.sign"],
        "algorithm": ["--model", "my_task.Plain", "--model.init_args.lr", "1e-3"],
    }  # fmt: skip
    common = [
        "fit", "--config", "quickstart", "--model.init_args.model", str(tiny_model_folder), "--rollout.engine", "hf",
        "--trainer.precision", "32-true", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0",
    ]  # fmt: skip
    for environment in ("Countdown", "Shop"):
        turns = ["--rollout.sampling.max_turns", "2", "--rollout.sampling.max_tokens", "4"]
        parts[environment] = ["--rollout.environment", f"{{class_path: my_env.{environment}}}", *turns]
    (tmp_path / "my_task.py").write_text("\n".join(blocks("python", ROOT / "docs/extend.md")))
    (tmp_path / "my_env.py").write_text("\n".join(blocks("python", ROOT / "docs/environments.md")))
    done = subprocess.run(
        [sys.executable, "-c", EACH, "|".join(common), *("|".join([name, *part]) for name, part in parts.items())],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert all((tmp_path / name / "summary.json").is_file() for name in parts)


def test_yaml_parses() -> None:
    for block in blocks("yaml", *PAGES):
        assert isinstance(yaml.safe_load(block), dict)


def test_readme_python_trains(tmp_path: Path, tiny_model_folder: Path) -> None:
    """README's lines of Python, without the command line; a tiny model and two steps in place of theirs."""
    (code,) = blocks("python", ROOT / "README.md")
    for said, small in (('"smollm2"', repr(str(tiny_model_folder))), ("max_steps=20", "max_steps=2, accelerator='cpu'"),
                        ("group_size=8", "group_size=2, engine='hf'")):  # fmt: skip
        assert said in code
        code = code.replace(said, small)
    done = subprocess.run(
        [sys.executable, "-c", code + "print(trainer.global_step)"], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.strip().endswith("2"), done.stderr[-3000:]


OTHER_KINDS = ("suites", "studies", "protocols", "printed", "claims")
CONFIGS = [
    path
    for path in sorted(config_folder().rglob("*.yaml"))
    if not {*path.relative_to(config_folder()).parts[:-1]} & {*OTHER_KINDS}
    or path.parent.name == "base"
    or path.stem == "steps"
]


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
