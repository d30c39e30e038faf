"""Misspelt names are found before torch is imported, with the parser's words, and nothing else is refused."""

from __future__ import annotations

import inspect
import json
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from jsonargparse._util import get_import_path
from made_runs import group, make_run
from tiny_runs import child_environment

from lit_rlvr.cli import early_check, main
from lit_rlvr.cli.early_check import IndexedNames, check_early, stored_help
from lit_rlvr.cli.error_lines import KnownNames, class_arguments, known_classes
from lit_rlvr.cli.lightning_cli import ConfigCheck
from lit_rlvr.commands.registry import COMMANDS
from lit_rlvr.configs import shipped_files
from lit_rlvr.errors import UserError
from lit_rlvr.run.trackers.feed import TRACKER_NAMES

REGENERATE = "run: python docs/scripts/options_page.py > docs/reference.md"
WRONG = [
    "fit --confg quickstart",
    "fit --config quickstar",
    "fit --config quickstart --rollout.grup_size 4 --lr 1",
    "fit --config quickstart --rollout.sampling.temprature=1",
    "fit --config quickstart --trainer.max_step.x 3",
    "fit --config quickstart --num_generations 3",
    "fit --config quickstart --model GRPOO",
    "fit --config quickstart --lr 1 --data arithmetic",
    "fit --config quickstart --model APMPO --model.init_args.gammma 1",
    "fit --config quickstart --data.prompts_per_rolloutt 4 --model GRPOO",
    "fit",
    "fit --model lit_rlvr.algorithms.GRPO",
    "validate --config quickstart --modle.init_args.lr 3",
    "preview --config quickstart --prompt 3",
    "filter --config quickstart",
    "fit --config quickstart --model.kl.coeff 1",
    "fit --config quickstart --model.init_args.kl_coef 1",
    "plan --config quickstart",
]
LEFT_TO_THE_PARSER = [
    "fit --config quickstart --model.optim.optimizer torch.optim.SGD --model.optim.optimizer.momentum 0.9",
    "fit --help --confg x",
    "fit --config quickstart --model my_task.MyGRPO --model.init_args.own 1",
    "fit --config quickstart --model.class_path my_task.MyGRPO --foo 1",
    "fit --config quickstart --model DAPO --model.init_args.lr 1e-5 --rollout.group_size=4 --dry-run",
    "fit --config quickstart --trainer.logger.save_dir x --rollout.evaluation.samples.toys 4 --rollout.rewards+ Format",
    "fit --config quickstart --rollout.group_size",
    "fit --config quickstart --model '{class_path: GRPO, init_args: {lr: 1}}' --model.lr 3 --rollout null",
    "plan --config quickstart --gpus 8x80GB",
]


OF_CONFIGS = [name for name, (module, _) in COMMANDS.items() if module == ConfigCheck.__module__]


@pytest.mark.parametrize("command", OF_CONFIGS)
def test_the_index_has_the_options_of_the_parser(command: str) -> None:
    parser = ConfigCheck(command).parser
    known, names = KnownNames(parser).options(), IndexedNames(command)
    assert names.options() - known == set(), REGENERATE
    assert {o for o in known - names.options() if ".init_args." not in o} == set(), REGENERATE
    sub = parser._subcommands_action._name_parser_map[command]
    assert {o.removesuffix("+") for o in sub._option_string_actions} == names.own, REGENERATE
    assert {a.dest for a in sub._actions if a.required} == names.required, REGENERATE


HELP = """
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from lit_rlvr.cli.early_check import stored_help
from lit_rlvr.cli.lightning_cli import ConfigCheck
from lit_rlvr.commands.registry import COMMANDS
for command, (module, _) in COMMANDS.items():
    if module == ConfigCheck.__module__:
        text = ConfigCheck(command).parser._subcommands_action._name_parser_map[command].format_help()
    else:
        with redirect_stdout(StringIO()) as out, suppress(SystemExit):
            import_module(module).run_command(command, ["--help"])
        text = out.getvalue()
    if stored_help(command) != text.strip():
        print(command)
"""


@pytest.mark.slow
def test_the_index_has_the_help_of_every_command() -> None:
    """In a process of its own: a parser's help names the subclasses that other tests define, too."""
    environment = child_environment() | {"COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", HELP], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "", REGENERATE


def test_the_index_has_the_classes_of_the_parser_and_their_options() -> None:
    names = IndexedNames("fit")
    assert names.index["lightning"] == version("lightning"), REGENERATE
    ours = {cls for classes in known_classes().values() for cls in classes if cls.__module__.startswith("lit_rlvr.")}
    shipped = {cls for cls in ours if not cls.__module__.startswith("lit_rlvr.commands.init")}
    assert names.classes() == {cls.__name__ for cls in shipped} | {*TRACKER_NAMES}, REGENERATE
    concrete = {get_import_path(cls): class_arguments(cls) for cls in shipped if not inspect.isabstract(cls)}
    assert {path for classes in names.index["classes"].values() for path in classes} == {*concrete}, REGENERATE
    assert {path: names.arguments(path) for path in concrete} == concrete, REGENERATE


def test_another_version_of_lightning_is_left_to_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_check, "version", lambda package: "2.99")
    check_early("fit", WRONG[0].split()[1:])
    assert stored_help("fit") is None


@pytest.mark.first_case_fast
@pytest.mark.parametrize("line", WRONG)
def test_a_misspelt_name_has_the_parser_s_line(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *arguments = line.split()
    with pytest.raises(UserError) as early:
        check_early(command, arguments)
    monkeypatch.setattr(early_check, "check_early", lambda command, arguments: None)
    assert main.run([command, *arguments]) == 2
    assert capsys.readouterr().err == f"lit-rlvr: error: {early.value}\n"


@pytest.mark.parametrize("line", LEFT_TO_THE_PARSER)
def test_what_may_be_right_is_left_to_the_parser(line: str) -> None:
    command, *arguments = shlex.split(line)
    check_early(command, arguments)


def test_shipped_configs_are_not_refused() -> None:
    for name in shipped_files():
        if name.startswith(("quickstart", "smoke/", "recipes/apmpo/", "svamp")):
            check_early("fit", ["--config", name, "--config", "strategy/fsdp2"])


LIGHT = """
import io, json, sys
from contextlib import redirect_stdout
from lit_rlvr.cli.main import run
for line, wanted in json.loads(sys.argv[1]):
    with redirect_stdout(io.StringIO()):
        status = run(line)
    heavy = {"torch", "lightning", "transformers"} & {*sys.modules}
    assert status == wanted and not heavy, (line, status, heavy)
"""
"""Runs several commands in one process; the first that imports a heavy package stands in the error."""


def test_help_errors_and_what_reads_files_import_no_heavy_package(tmp_path: Path) -> None:
    make_run(tmp_path / "run", traces={4: [group()]})
    lines = [f"{command} --help" for command in COMMANDS]
    lines += ["report run", "explain run", "watch run --json", "reproduce --list"]
    cases = [(line.split(), 0) for line in lines] + [(["fit", "--confg", "x"], 2)]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(cases)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("lit-rlvr: error: unknown option '--confg'; did you mean '--config'?\n")
