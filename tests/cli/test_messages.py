"""Messages name options that the command has, and the way to continue that command."""

import ast
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from lit_rlvr.cli.early_check import IndexedNames
from lit_rlvr.commands.registry import COMMANDS
from lit_rlvr.common import resuming

PACKAGE = Path(__file__).parents[2] / "lit_rlvr"
OF_TWO = {"check": "parity", "compare": "reproduce", "report": "explain"}
"""Folder of a command -> the other command in it."""


@cache
def options_of(command: str) -> set[str]:
    """The options that a command has, by the index or by its help."""
    if COMMANDS[command][0] == COMMANDS["fit"][0]:
        return IndexedNames(command).options()
    out = io.StringIO()
    with suppress(SystemExit), redirect_stdout(out):
        import_module(COMMANDS[command][0]).run_command(command, ["--help"])
    return {"--json", *re.findall(r"(?<!\S)--\w[\w.-]*\w", out.getvalue())}


def texts(file: Path) -> Iterator[str]:
    """The texts in a module but docstrings; what an f-string computes is `{}`."""
    tree = ast.parse(file.read_text())
    left_out = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.value


def strangers(command: str, text: str) -> list[str]:
    """The options in a text that neither its command has nor, in a line with another `lit-rlvr` command, that one."""
    found = []
    for part in re.split(r"`|(?=lit-rlvr [a-z]+ )", text):
        named = re.match(r"(?:lit-rlvr )?([a-z]+) ", part)
        known = options_of(named[1] if named and named[1] in COMMANDS else command)
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", part):
            if option not in known:
                found.append(f"{option} in {text!r}")
    return found


@pytest.mark.parametrize("command", ["check", "compare", "doctor", "evaluate", "export", "init", "report", "watch"])
def test_a_command_names_its_own_options(command: str) -> None:
    files = [*(PACKAGE / "commands").glob(f"{command}.py"), *(PACKAGE / "commands" / command).glob("*.py")]
    assert files
    unknown = []
    for text in {text for file in files for text in texts(file) if " " in text}:  # a lone one goes to another command
        ours = strangers(command, text)
        if ours and command in OF_TWO:
            ours = strangers(OF_TWO[command], text)
        unknown += ours
    assert [line for line in unknown if "--no-deps" not in line] == [], "of pip: the line that installs packages"


def test_a_foreign_option_would_be_found() -> None:
    said = "raise it, and resume with --ckpt_path last"
    assert strangers("check", said) == [f"--ckpt_path in {said!r}"]
    assert strangers("check", "`lit-rlvr fit --ckpt_path last` or --rows 3") == []


def test_parts_of_several_commands_say_how_theirs_is_continued() -> None:
    for file in PACKAGE.rglob("*.py"):
        if file.parent.name != "run" and file.name != "resuming.py":
            assert not [text for text in texts(file) if "--ckpt_path last" in text], file
    for command in resuming.RESUMING.keys() - {"python"}:
        assert strangers(command, resuming.RESUMING[command]) == []
    with resuming.running("fit"):
        assert resuming.how_to_resume() == "resume with --ckpt_path last"
        assert resuming.how_to_replace() == "--overwrite true"
        with resuming.running("filter"):
            assert resuming.how_to_resume() == "run the same command again to continue"
        with resuming.running("check"):
            assert resuming.how_to_resume() == "run the command again"
        assert resuming.run_folder_option() == "trainer.default_root_dir"
    assert resuming.how_to_resume() == 'resume with ckpt_path="last"', "in Python"
    assert (resuming.how_to_replace(), resuming.run_folder_option()) == ("overwrite=True", "default_root_dir")
