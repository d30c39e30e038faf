"""The documents say what the code does: their code runs, their configs parse, the reference is current."""

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from stub_judge import StubJudge, answer_in
from tiny import make_prompt, start_engine
from tiny_engines import adapted
from tiny_runs import FIT, to
from transformers import TrainingArguments
from trl import GRPOConfig
from trl.rewards import accuracy_reward

import lit_rlvr
from lit_rlvr import advantages, algorithms
from lit_rlvr.advantages import GroupBatch
from lit_rlvr.cli.early_check import IndexedNames
from lit_rlvr.cli.main import COMMANDS, run
from lit_rlvr.common.run_files import read_metrics
from lit_rlvr.configs import config_folder
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.synced import trainer_logprobs
from lit_rlvr.engines.turns import Continuation, Turns
from lit_rlvr.objectives import LossInputs
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Sample

TESTS = Path(__file__).parent
ROOT = TESTS.parent
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "docs/scripts")
    from advice_page import advice_page
    from metrics_page import metrics_page
    from options_page import options_reference as made_reference
options_reference = functools.cache(made_reference)
README = (ROOT / "README.md").read_text()
TOPS = ("lit_rlvr", "datamodules", "tests", "benchmarks", "research", "docs", "configs")
USERS = {"my_task.py", "shop.py", "task.py", "my_env.py", "train.py", "my_losses.py", "my_agent.py"}
"""Files that a user of the documents writes."""
OTHERS = {
    "--api-key", "--api-server-count", "--apply_chat_template", "--backend-store-uri", "--batch_size",
    "--enable-return-routed-experts", "--enforce-eager", "--extra-index-url", "--from",
    "--gpu-memory-utilization", "--include", "--include_path",
    "--index-strategy", "--local-dir", "--log_samples", "--max-num-seqs", "--model_args", "--no-deps", "--output_path",
    "--kill-on-bad-exit", "--max-restarts", "--no-python", "--nproc-per-node", "--project", "--repo-type",
    "--requeue", "--return-sampling-mask", "--tasks", "--weighted_sample",
}  # fmt: skip
"""Options of other programs."""
WITHIN = {
    "--init_args.boxed_only",
    "--init_args.clip",
    "--model.init_args.advantage.base",
    "--model.init_args.teacher.model",
    "--rollout.engine.init_args.transfer.init_args.folder",
}
"""Options of a class that another option or the argument of `check` names, which no list of options has."""
OTHER_CODE = {"verl", "TRL", "prime-rl", "AReaL"}
"""Projects whose commits are cited."""
TABLES = [ROOT / "benchmarks/README.md", ROOT / "research/README.md"]
SCRIPTS = [file for folder in ("benchmarks", "research", "docs/scripts") for file in (ROOT / folder).glob("*.py")]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [path for table in TABLES for path in sorted(table.parent.glob("*.md")) if path not in TABLES]


def blocks(language: str, *pages: Path) -> list[str]:
    found = [pair for page in pages for pair in re.findall(r"```(\w*)\n(.*?)```", page.read_text(), re.S)]
    return [block for name, block in found if name == language]


@pytest.mark.parametrize(
    ("page", "made", "by"),
    [
        ("reference", options_reference, "options_page"),
        ("metrics", metrics_page, "metrics_page"),
    ],
)
def test_a_generated_page_is_current(page: str, made: Callable[[], str], by: str) -> None:
    assert (ROOT / f"docs/{page}.md").read_text() == made(), f"run: python docs/scripts/{by}.py > docs/{page}.md"


def test_the_tables_of_advice_are_current() -> None:
    page = (ROOT / "docs/it_does_not_learn.md").read_text()
    assert page == advice_page(page), "run: python docs/scripts/advice_page.py"


def test_every_file_that_is_named_exists() -> None:
    """In the documents, and in the docstrings and comments of the code: by its path from the repository, the package or
    the folder of the text, or by its name alone if no other file has it."""
    tracked = [file for top in TOPS for file in (ROOT / top).rglob("*.*") if "__pycache__" not in file.parts]
    tracked += [file for file in ROOT.iterdir() if file.is_file()]
    names = Counter(file.name for file in tracked)
    sources = PAGES + [file for file in tracked if file.suffix == ".py" and "tests" not in file.parts]
    missing = [
        f"{source.relative_to(ROOT)}: {name}"
        for source in sources
        for name in re.findall(r"`((?:[\w.]+/)*\w+\.py)`", source.read_text())
        if not any((base / name).is_file() for base in (ROOT, ROOT / "lit_rlvr", source.parent))
        and names[name] != 1
        and name not in USERS
    ]
    assert not missing


def test_every_proof_that_is_named_exists() -> None:
    """The tests in docs/concepts.md: each stands in a file that the same line links to."""
    page, proofs = ROOT / "docs/concepts.md", 0
    for line in page.read_text().splitlines():
        files = [(page.parent / target).read_text() for target in re.findall(r"\]\(([^)]+\.py)\)", line)]
        for name in re.findall(r"`(test_\w+)`", line):
            assert any(f"def {name}(" in text for text in files), name
            proofs += 1
    assert proofs > 10


def test_what_people_copy_imports_public_names() -> None:
    """From `lit_rlvr`, and from the two modules that are doors of their own: the answer check, and the command line."""
    projects = ROOT / "lit_rlvr/commands/init/projects"
    sources = {str(page): "\n".join(blocks("python", page)) for page in PAGES}
    sources |= {str(file): file.read_text() for file in [*projects.rglob("*.py"), *ROOT.glob("docs/tutorials/*.py")]}
    inside = []
    for name, code in sources.items():
        for module, names in re.findall(r"(?m)^ *from (lit_rlvr[\w.]*) import \(?([^)\n]*)", code):
            if module == "lit_rlvr":
                inside += [f"{name}: {word}" for word in re.findall(r"\w+", names) if not hasattr(lit_rlvr, word)]
            elif module not in ("lit_rlvr.answers", "lit_rlvr.cli.main"):
                inside.append(f"{name}: {module}")
    assert inside == []


def test_commits_that_are_cited_exist() -> None:
    """In HEAD's history; a commit of another project stands after its name."""
    if not (ROOT / ".git").exists():
        return  # an unpacked archive has no history to look into

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    pages = [*PAGES, ROOT / "CHANGELOG.md", *TABLES]
    cited = [
        (page.name, sha)
        for page in pages
        for before, sha in re.findall(r"([\w-]*)\W+([0-9a-f]{7,40})\b", page.read_text())
        if before == "commit" or (re.search(r"[a-f]", sha) and re.search(r"\d", sha) and before not in OTHER_CODE)
    ]
    known = {commit[:7] for commit in git("rev-list", "HEAD").split()}
    unknown = [f"{page}: {sha}" for page, sha in cited if sha[:7] not in known]
    assert not unknown or git("rev-parse", "--is-shallow-repository") == "true"


def test_the_way_to_the_loop_is_that_of_the_code() -> None:
    """Each line names a function, a class, or a method of a class, and its file."""
    lines = re.findall(r"(?m)^ *([\w.]+)  +(\w+/\w+\.py) ", (ROOT / "docs/concepts.md").read_text())
    assert len(lines) > 10
    for name, file in lines:
        path = ROOT / "lit_rlvr" / file
        assert path.is_file(), file
        scope: ast.AST = ast.parse(path.read_text())
        for part in name.split("."):
            defined = {node.name: node for node in ast.iter_child_nodes(scope) if isinstance(node, DEFINITIONS)}
            assert part in defined, f"{name} in {file}"
            scope = defined[part]


def attributes_of(path: Path) -> set[str]:
    """Return the attributes that the classes of a file declare or set."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def test_the_owners_of_the_diagram_are_those_of_the_code() -> None:
    """Each class stands in the file of its line, and its attribute in that of the line that it is indented under."""
    text = (ROOT / "docs/concepts.md").read_text()
    lines = re.findall(r"(?m)^([│├└─ ]*)(\w+): (\w+) +(\w[\w/]*\.py)", text)
    assert len(lines) > 10
    above: dict[int, Path] = {}  # depth -> file of the last line
    for indent, attribute, name, file in lines:
        path = ROOT / "lit_rlvr" / file
        assert f"\nclass {name}(" in path.read_text() or f"\nclass {name}:" in path.read_text(), f"{name} in {file}"
        depth = len(indent) // 3
        if depth > 1:  # what a trainer has, Lightning names
            assert attribute in attributes_of(above[depth - 1]), f"{attribute} of {name}"
        above[depth] = path


@pytest.mark.parametrize(
    ("before", "fields"), [("`groups` has these fields", GroupBatch), ("`x` is the input", LossInputs)]
)
def test_the_tables_of_fields_are_those_of_the_code(before: str, fields: type) -> None:
    text = (ROOT / "docs/extend.md").read_text().partition(before)[2].partition("\n\n")[2].partition("\n\n")[0]
    named = {name for row in text.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {field.name for field in dataclasses.fields(fields)}


def test_every_command_that_is_named_exists() -> None:
    missing = [
        f"{page.name}: lit-rlvr {command}"
        for page in PAGES
        for command in re.findall(r"(?:`|^|\| )lit-rlvr ([\w-]+)", page.read_text(), re.M)
        if command not in {*COMMANDS, "help", "count-rows"} and not command.startswith("--")
    ]
    assert not missing


def test_every_option_that_is_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    """An option of a command, by its index or its help, of one of our scripts, or of another program."""
    known = set()
    for command, (entry, _) in COMMANDS.items():
        if entry == COMMANDS["fit"][0]:
            known |= IndexedNames(command).options()
        else:
            with suppress(SystemExit):
                import_module(entry).run_command(command, ["--help"])
            known |= set(re.findall(r"(?<!\S)--\w[\w.-]*\w", capsys.readouterr().out))
    for file in [*SCRIPTS, ROOT / "lit_rlvr/conformance/__main__.py", TESTS / "conftest.py"]:
        known |= set(re.findall(r'add_?(?:argument|option)\(\s*"(--[\w-]+)"', file.read_text()))
    found = {
        option: page.name for page in PAGES for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", page.read_text())
    }
    assert {option: page for option, page in found.items() if option not in known | OTHERS | WITHIN} == {}
    assert (OTHERS | WITHIN) - {*found} == set(), "no page has them"


@pytest.fixture
def algorithm_pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs/scripts")
    return importlib.import_module("algorithm_pages")


@pytest.mark.slow
def test_the_pages_of_algorithms_are_current(algorithm_pages: ModuleType) -> None:
    """Their tables say what the classes say, and every class and advantage has a page."""
    pages, methods = {path.stem: path for path in (ROOT / "docs/algorithms").glob("*.md")}, algorithm_pages.METHODS
    assert pages.keys() == {"index", *(method.page for method in methods)}
    stale = [path.name for path, text in algorithm_pages.documents().items() if path.read_text() != text]
    assert not stale, "run: python docs/scripts/algorithm_pages.py"
    assert {method.loss for method in methods if method.owns_loss} | {"RLVRModule"} == {*algorithms.__all__}
    assert {name for method in methods for name in method.advantages} == advantages.REGISTRY.keys()
    assert all(algorithm_pages.papers(method) for method in methods)
    for record in algorithm_pages.RECORDS:
        assert record.arxiv[0] in (inspect.getdoc(getattr(algorithms, record.loss)) or ""), record.loss
    for method in methods:
        assert f"]({method.page}.png)" in pages[method.page].read_text() or method.study is None


def test_readme_and_the_index_list_every_algorithm_and_advantage() -> None:
    losses = {*algorithms.__all__} - {"RLVRModule"}
    section = README.partition("## Algorithms\n")[2].partition("\n## ")[0]
    assert {*re.findall(r"`(\w+)`[,| \n]", section)} == losses
    index = (ROOT / "docs/algorithms/index.md").read_text()
    rows = [line.split("|") for line in index.splitlines() if line.startswith("| [")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row[2])} == losses
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[3])}
    assert advantages.REGISTRY.keys() <= named


def test_the_recipes_of_the_pages_of_algorithms_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Shipped ones as files, which test_recipes.py builds; the others parse, and train the advantage that they name."""
    for command in "".join(blocks("", *(ROOT / "docs/algorithms").glob("*.md"))).splitlines():
        program, *arguments = command.split()
        assert program == "lit-rlvr" and (config_folder() / f"{arguments[2]}.yaml").is_file(), command
        if "--model.init_args.advantage" in arguments:
            with pytest.raises(SystemExit) as stop:
                run([*arguments, "--print_config"])
            assert stop.value.code == 0, command
            name = arguments[arguments.index("--model.init_args.advantage") + 1]
            assert name in str(yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["advantage"])


@pytest.mark.first_case_fast
@pytest.mark.parametrize("page", sorted({path.stem for path in (ROOT / "docs/algorithms").glob("*.md")} - {"index"}))
def test_a_page_of_an_algorithm_begins_with_its_config(page: str, tmp_path: Path) -> None:
    text = (ROOT / f"docs/algorithms/{page}.md").read_text()
    found = re.match(r"# [^\n]*\n\n```yaml\n(.*?)```", text, re.S)
    assert found
    (tmp_path / "page.yaml").write_text(found[1])
    with pytest.raises(SystemExit) as stop:
        run(["fit", "--config", "quickstart", "--config", str(tmp_path / "page.yaml"), "--print_config"])
    assert stop.value.code == 0


def test_every_option_has_a_meaning() -> None:
    assert not [line for line in options_reference().splitlines() if line.startswith("| `") and line.endswith("|  |")]


def test_the_page_of_commands_shows_every_command() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    assert [command for command in COMMANDS if f"\nlit-rlvr {command}" not in page] == []


def test_the_page_for_trl_has_every_field_of_its_config() -> None:
    """Each field that TRL defines is in a table's column on TRL, next to an option of ours or "no" with a reason."""
    own = {field.name for field in dataclasses.fields(GRPOConfig)} - {
        f.name for f in dataclasses.fields(TrainingArguments)
    }
    own |= {name for cls in GRPOConfig.__mro__ if cls.__module__.startswith("trl") for name in cls.__annotations__}
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    ours = set(re.findall(r"\w+", options_reference())) | {
        *algorithms.__all__,
        *advantages.REGISTRY,
        "precision",
    }
    found: set[str] = set()
    for table in re.findall(r"(?:^\|.*\n)+", (ROOT / "docs/coming_from_trl.md").read_text(), re.M):
        header, _, *rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()
        ]
        theirs = next((k for k, cell in enumerate(header) if cell.startswith("TRL")), None)
        if theirs is None:
            continue
        found |= {
            name for cell in (header[theirs], *(row[theirs] for row in rows)) for name in re.findall(r"`(\w+)", cell)
        }
        for row in rows:
            assert set(re.findall(r"`(\w+): ", row[theirs])) <= known, f"{row[theirs]}: TRL has no such option"
            here = row[header.index("here")]
            assert here != "no" or len(row[-1]) > len("yes"), f"{row[theirs]}: say why not"
            if own & set(re.findall(r"`(\w+)", row[theirs])):
                named = set(re.findall(r"`(?:\w+\.)*([a-z_]{4,})`", here)) - own
                assert named <= ours, f"{here}: no options of ours: {named - ours}"
    assert own <= found, f"not on the page: {sorted(own - found)}"


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


def test_the_members_of_the_python_reference_exist() -> None:
    """The site leaves out a member that is not there, without a word."""
    missing = []
    for page in sorted((ROOT / "docs/api").glob("*.md")):
        for path, members in re.findall(r"(?m)^::: ([\w.]+)\n    options:\n      members: \[(.*)\]", page.read_text()):
            described = pkgutil.resolve_name(path)
            for member in filter(None, members.split(", ")):
                if not hasattr(described, member):
                    missing.append(f"{page.name}: {path}.{member}")
    assert not missing


def test_the_helpers_of_tests_are_listed() -> None:
    named = re.findall(r"`(\w+\.py)`(?=.*\|)", (TESTS / "helpers/README.md").read_text())
    assert sorted(named) == sorted(path.name for path in (TESTS / "helpers").glob("*.py"))


def test_the_step_of_the_list_of_helpers_trains(tiny_model_folder: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec("\n".join(blocks("python", TESTS / "helpers/README.md")), names)
    names["test_a_step_has_a_gradient"](tiny_model_folder, tmp_path)


def test_contributing_lists_the_tests_of_whole_runs() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("in `tests/run/` |\n")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines()[1:] for name in re.findall(r"\w+", row.split("|")[2])]
    assert sorted(f"test_{name}.py" for name in named) == sorted(
        path.name for path in (TESTS / "run").glob("test_*.py")
    )


def test_the_home_page_leads_to_every_page() -> None:
    """The home page links each page for users, the tutorials included; algorithms and api have lists of their own."""
    docs = ROOT / "docs"
    linked = set(re.findall(r"\]\(([\w/]+\.md)", (docs / "index.md").read_text()))
    pages = {str(page.relative_to(docs)) for folder in (docs, docs / "tutorials") for page in folder.glob("*.md")}
    assert pages - linked == {"index.md"}


def page_of_entry(entry: Any) -> str:
    """Return the page of an entry of the site's menu; that of a list of pages is its first one."""
    while not isinstance(entry, str):
        if isinstance(entry, dict):
            (entry,) = entry.values()
        else:
            entry = entry[0]
    return entry


def test_the_menu_of_the_site_is_the_home_page() -> None:
    """Both have the same sections, and in each section the same pages, in the same order."""
    _, *sections = re.split(r"(?m)^## ", (ROOT / "docs/index.md").read_text())
    shown = []
    for section in sections:
        title, _, text = section.partition("\n")
        pages = []
        for link in re.findall(r"\]\(([^)]+)\)", text):
            page = re.sub(r"^\.\./", "repository/", link)
            pages.append(page if page.endswith(".md") else f"{page}.md")
        shown.append((title, pages))
    _, *entries = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    menu = []
    for entry in entries:
        ((title, pages),) = entry.items()
        menu.append((title, [page_of_entry(page) for page in pages]))
    assert menu == shown
    starts = dict(menu)["Start"]
    assert "concepts.md" in starts[:2]


def test_excerpts_stand_in_their_files() -> None:
    """The block after a line that links to a file and ends in a colon has lines of that file; `# ...` omits some."""
    shown = set()
    for page in PAGES:
        assert "--8<--" not in page.read_text(), f"{page.name}: include the text itself"
        for name, text in re.findall(r"\]\(([^)\s]+)\)[^\n]*:\n+```(?:python|yaml)\n(.*?)```", page.read_text(), re.S):
            file, position = (page.parent / name).resolve(), 0
            shown.add(str(file.relative_to(ROOT)))
            for part in re.split(r"^ *# \.\.\.\n", text, flags=re.M):
                position = file.read_text().find(part, position)
                assert position >= 0, f"{page.name}: {name} has no such lines:\n{part}"
    scripts = {str(path.relative_to(ROOT)) for path in (ROOT / "docs/tutorials").glob("*.py")}
    assert scripts | {name.replace(".py", ".yaml") for name in scripts} | {"configs/smoke/tools.yaml"} <= shown


FEW = "--model.init_args.model tiny-llama --rollout.engine hf --rollout.sampling.max_tokens 8"
SMALL = (
    r"sed -i -E 's/\b(steps|max_steps|validate_every_rollouts|held_out|prompts_per_rollout|group_size): [0-9]+/\1: 2/g'"
)
VISION_TEST = (
    "lit-rlvr evaluate --model runs/vision --suite vision_test.yaml,vision_shuffled.yaml -n 8 --temperature 1 --top_p 1"
    " --out results"
)
OTHERWISE = {
    "make quickstart": f"{SMALL} configs/quickstart.yaml && make quickstart",
    "lit-rlvr fit --config my.yaml": f"lit-rlvr fit --config my.yaml --trainer.max_steps 1 {FEW}",
    "lit-rlvr fit --config my.yaml --ckpt_path last": (
        f"lit-rlvr fit --config my.yaml --trainer.max_steps 2 {FEW} --ckpt_path last"
    ),
    "lit-rlvr fit --config quickstart --model DAPO --trainer.default_root_dir runs/dapo": (
        "lit-rlvr fit --config quickstart --model DAPO --trainer.default_root_dir runs/dapo --dry-run"
    ),
    "python own_algorithm.py": (
        f"{SMALL} ../lit-rlvr/configs/smoke/sums.yaml"
        """ && sed -i -E 's/"(240|15|4)"/"2"/' own_algorithm.py"""
        " && python own_algorithm.py && python own_algorithm.py"  # the page says: break it and run it again
    ),
    "python own_task.py": (
        f"sed -i 's/:128/:8/; s/128:/-16:/' own_task.py && {SMALL} own_task.yaml && python own_task.py"
    ),
    "lit-rlvr fit --config own_task.yaml": "lit-rlvr fit --config own_task.yaml --model.init_args.model tiny-llama",
    "python3 install.py vision": "python3 lit-rlvr/install.py vision",
    VISION_TEST: f"{VISION_TEST} --engine hf",
    "python vision.py": f"sed -i 's/128)/8)/g; s/1024)/160)/' vision.py && {SMALL} vision.yaml && python vision.py",
}
"""Command of a document -> another form: with few steps and rows, or from another folder."""
LEFT_OUT = {
    "make test": "needs `make develop`",
    "make docs": "needs `make develop`",
    "pip install": "changes the environment; .ci/resolve resolves every extra",
    "uv pip install": "changes the environment; .ci/resolve resolves every extra",
    "uvx --from . lit-rlvr doctor": "makes another environment, with torch for a GPU",
    "lit-rlvr watch runs": "serves until Ctrl-C; tests/commands/watch runs it",
    "lit-rlvr evaluate": "names the command alone",
    "lit-rlvr compare": "names the command alone",
    "lit-rlvr tune": "names the command alone",
}
"""Command of a document, or the first words of several -> why it is not run."""


def shown_commands(page: Path) -> list[str]:
    """Return a page's commands in their order: the lines of shell blocks, and commands within the text."""
    commands = []
    for language, block, inline in re.findall(r"```(\w*)\n(.*?)```|`([^`]+)`", page.read_text(), re.S):
        if language in ("", "bash", "sh"):
            commands += [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
        if re.match(r"(\.|lit-rlvr|make|python3?|pip|uvx?)\s", inline):
            commands.append(" ".join(inline.split()))
    return [re.split(r"\s+# ", command)[0] for command in commands]


def is_left_out(command: str) -> bool:
    """Return whether a command is in LEFT_OUT, or installs packages."""
    return command in LEFT_OUT or command.startswith(("pip install ", "uv pip install "))


RUN_PAGES = {"README and own_task": ["README.md", "docs/tutorials/own_task.md"]}
RUN_PAGES["other tutorials"] = [
    str(page.relative_to(ROOT))
    for page in sorted((ROOT / "docs/tutorials").glob("*.md"))
    if str(page.relative_to(ROOT)) not in RUN_PAGES["README and own_task"]
]
INSTALL = ["make install", ". .venv/bin/activate"]
"""Where README, whose own commands install, is not among the pages."""


def test_commands_that_run_otherwise_or_not_are_shown() -> None:
    shown = [command for pages in RUN_PAGES.values() for page in pages for command in shown_commands(ROOT / page)]
    assert OTHERWISE.keys() <= set(shown)
    assert [start for start in LEFT_OUT if not any(command.startswith(start) for command in shown)] == []


@pytest.mark.parametrize(
    ("kind", "before"),
    [
        pytest.param("README and own_task", [], marks=pytest.mark.slow),
        pytest.param("other tutorials", INSTALL, marks=pytest.mark.exhaustive),
    ],
)
def test_commands_run_after_make_install(kind: str, before: list[str], tmp_path: Path) -> None:
    """The commands of the pages, in one shell, without the extras of `make develop`."""
    script = ["PS4='+ $SECONDS s '", "cd lit-rlvr", *before]
    for page in RUN_PAGES[kind]:
        if page != "README.md":
            script.append(f"cd {tmp_path}")
        commands = [command for command in shown_commands(ROOT / page) if not is_left_out(command)]
        script += [OTHERWISE.get(command, command) for command in commands]
    copy = tmp_path / "lit-rlvr"
    copy.mkdir()
    subprocess.run(["bash", "-c", f"git ls-files -z | tar -c --null -T - | tar -x -C {copy}"], cwd=ROOT, check=True)
    (config,) = blocks("yaml", ROOT / "README.md")
    (copy / "my.yaml").write_text(config)
    (copy / "gsm8k").mkdir()
    for name, first in (("train", 0), ("test", 8)):
        rows = [{"question": f"What is {k} + 1?", "answer": f"#### {k + 1}"} for k in range(first, first + 8)]
        (copy / f"gsm8k/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours = ("PYTHON", "OMP_", "VLLM_", "TOKENIZERS_", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environment |= {"PYTHON": sys.executable}
    with (tmp_path / "output.txt").open("w") as output:
        done = subprocess.run(
            ["bash", "-xc", "\n".join(f"{command} || exit 1" for command in script)],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=1100,
            check=False,
        )
    assert done.returncode == 0, (tmp_path / "output.txt").read_text()[-4000:]


@pytest.mark.slow
def test_plug_points_run(run_folder: Path, vlm_folder: Path, lit_rlvr: Any) -> None:
    """Each part of `my_task` in the pages that have one, and of `my_env` in docs/environments.md, used from another
    folder by its class_path alone."""
    parts = {
        "data": ["--data", "my_task.Reverse", "--data.init_args.prompts_per_rollout", "2"],
        "images": ["--data", "my_task.Clocks", "--data.init_args.prompts_per_rollout", "2",
                   "--model.init_args.model", str(vlm_folder)],
        "reward": ["--rollout.rewards", "[{class_path: my_task.EndsRight}]"],
        "function": ["--rollout.rewards", "[my_task.score]"],
        "advantage": ["--model.init_args.advantage", "my_task.sign"],
        "stateful": ["--model.init_args.advantage", "my_task.Baseline"],
        "engine": ["--rollout.engine", "my_task.Slow"],
        "algorithm": ["--model", "my_task.Plain", "--model.init_args.lr", "1e-3"],
        "sequences": ["--model", "my_task.Whole"],
        "groups": ["--model", "my_task.OnlyMixed"],
        "function of a loss": ["--model", "FunctionLoss", "--model.init_args.function", "my_task.my_loss"],
        "term": ["--model.init_args.terms", "[{class_path: my_task.Confidence, init_args: {coef: 0.01}}]"],
        "tracker": ["--trackers", "my_task.Lines"],
        "teacher": ["--model", "OPD", "--model.init_args.teacher.prompt", "my_task.Hint"],
    }  # fmt: skip
    for environment in ("my_env.Countdown", "my_env.Shop"):
        turns = ["--rollout.sampling.max_turns", "2", "--rollout.sampling.max_tokens", "4"]
        parts[environment] = ["--rollout.environment", f"{{class_path: {environment}}}", *turns]
    pages = [ROOT / f"docs/{name}.md" for name in ("extend", "plugins", "data", "judges", "algorithms/opd")]
    (run_folder / "my_task.py").write_text("\n".join(blocks("python", *pages)))
    (run_folder / "my_env.py").write_text("\n".join(blocks("python", ROOT / "docs/environments.md")))
    for name, part in parts.items():
        done = lit_rlvr(*FIT, "--trainer.max_steps", 1, "--trainer.limit_val_batches", 0, *part, *to(name))
        assert done.status == 0 and (run_folder / name / "summary.json").is_file(), f"{name}: {done.err}"


def test_the_engine_of_the_page_samples_a_reference_without_the_adapters(tiny_model_folder: Path) -> None:
    """With LoRA a reference is the trained model with its adapters off."""
    names: dict[str, Any] = {}
    exec("\n".join(blocks("python", ROOT / "docs/plugins.md")), names)
    policy, prompts, sampling = adapted(tiny_model_folder), [make_prompt([7, 8, 9])], Sampling(max_tokens=8)
    engine = names["Slow"]()
    start_engine(engine, policy)
    for given in (policy, policy.without_adapters()):
        engine.sync(given)
        groups = engine.generate(prompts, sampling, [[1, 2]])
        for completion, ours in zip(groups[0], trainer_logprobs(given, prompts, groups, sampling), strict=True):
            torch.testing.assert_close(torch.tensor(completion.logprobs), ours, atol=1e-4, rtol=0)


class OneMoreTurn(Turns):
    """Answers every first turn with two tokens; the second turn is the completion."""

    def begin(self, *given: Any) -> None:
        super().begin(*given)
        self.answered: set[tuple[int, int]] = set()

    def stopped(self, p: int, g: int, turn: Completion) -> None:
        if (p, g) in self.answered:
            super().stopped(p, g, turn)
        else:
            self.answered.add((p, g))
            self._over.append((p, g, Continuation((9, 10), 4)))


def test_the_engine_of_the_page_plays_turns_as_ours_does(tiny_model_folder: Path) -> None:
    names: dict[str, Any] = {}
    exec("\n".join(blocks("python", ROOT / "docs/plugins.md")), names)
    policy = adapted(tiny_model_folder)
    prompts = [make_prompt([7, 8, 9]), make_prompt([5])]
    found = []
    for engine in (names["Slow"](), HFEngine()):
        start_engine(engine, policy)
        engine.sync(policy)
        greedy = Sampling(temperature=0.0, max_tokens=6)
        found.append(engine.generate(prompts, greedy, [[1, 2], [3]], turns=OneMoreTurn()))
    slow, ours = found
    assert [[c.token_ids for c in group] for group in slow] == [[c.token_ids for c in group] for group in ours]
    assert [len(group) for group in slow] == [2, 1]


def test_the_judge_of_the_page_asks() -> None:
    names: dict[str, Any] = {}
    exec("\n".join(blocks("python", ROOT / "docs/judges.md")), names)
    with StubJudge(lambda text, _: {"polite": "yes" if "please" in answer_in(text) else "no"}) as stub:
        judge = names["Polite"](stub.server())
        stub.faults.append(400)
        pairs = [(Completion(text, (), "stop"), Sample("1", "Ask.", "")) for text in ("Go!", "Go, please.", "Go.")]
        results = [judge.score([pair])[0] for pair in pairs]
    assert [(result.status, result.value) for result in results] == [("error", 0), ("ok", 1), ("ok", 0)]


def test_other_frameworks_call_the_check_as_the_page_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lighteval = SimpleNamespace(SampleLevelComputation=object)
    monkeypatch.setitem(sys.modules, "lighteval.metrics.metrics_sample", lighteval)
    names: dict[str, Any] = {}
    exec("\n".join(blocks("python", ROOT / "docs/answers.md")), names)
    assert capsys.readouterr().out == "True ok 3/4, or 75%\n"
    texts = ["\\boxed{7}", "The answer is 8."]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert names["answer_reward"](texts, ["7", "7"], prompts=[]) == [1, 0]
    assert names["answer_reward"](messages, ["7", "7"]) == [1, 0] == accuracy_reward(messages, ["7", "7"])
    assert [names["compute_score"]("set", text, "7") for text in texts] == [1, 0]
    doc = SimpleNamespace(get_golds=lambda: ["7"])
    responses = [SimpleNamespace(final_text=[text]) for text in texts]
    assert [names["AnswerCheck"]().compute(doc, response) for response in responses] == [1, 0]


def test_yaml_parses() -> None:
    for block in blocks("yaml", *PAGES):
        assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.slow
def test_readme_python_trains(tmp_path: Path, tiny_model_folder: Path) -> None:
    """README's lines of Python with a tiny model and two steps, then once more for a third step from the checkpoint."""
    (code,) = blocks("python", ROOT / "README.md")
    for said, small in (
        ('"smollm2"', repr(str(tiny_model_folder))),
        ("max_steps=20", "max_steps=STEPS, accelerator='cpu'"),
        ("group_size=8", "group_size=2, engine='hf'"),
        ("prompts_per_rollout=8)", "prompts_per_rollout=8), ckpt_path=PATH"),
    ):
        assert said in code
        code = code.replace(said, small)
    runs = "\n".join(
        code.replace("STEPS", str(steps)).replace("PATH", str(path)) for steps, path in ((2, None), (3, "'last'"))
    )
    done = subprocess.run(
        [sys.executable, "-c", runs], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"^step (\d/\d)  reward", done.stderr, re.M) == ["1/2", "2/2", "3/3"]
    assert "Warning" not in done.stderr, done.stderr
    run = tmp_path / "runs/sums"
    found = json.loads((run / "summary.json").read_text())
    assert (found["steps"], found["resumed_from_step"], found["stopped"]) == (3, 2, None)
    assert {*read_metrics(run / "metrics.csv")} == {0, 1, 2, 3}
    assert (run / "completions.jsonl").is_file() and (run / "tensorboard").is_dir()


OUTSIDE = ROOT / "docs/outside.md"


def test_outside_transformers_runs(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = [block for block in blocks("python", OUTSIDE) if "transformers" in block]
    (tmp_path / "exported").symlink_to(tiny_model_folder)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out


OTHER_KINDS = ("suites", "studies", "protocols", "printed", "claims")
CONFIGS = [
    path
    for path in sorted(config_folder().rglob("*.yaml"))
    if not {*path.relative_to(config_folder()).parts[:-1]} & {"recipes", *OTHER_KINDS}  # test_recipes.py builds them
    or path.parent.name == "base"
    or path.stem == "steps"
]


@pytest.mark.first_case_fast
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(path.relative_to(config_folder()).with_suffix(""))
    stack = ["--config", "quickstart"] if path.parent.name == "strategy" or name.startswith("studies/base/") else []
    with pytest.raises(SystemExit) as stop:
        run(["fit", *stack, "--config", name, "--print_config"])
    assert stop.value.code == 0
    assert "class_path: lit_rlvr.algorithms" in capsys.readouterr().out
