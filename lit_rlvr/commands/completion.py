"""`lit-rlvr completion bash`: prints a script that completes commands, options, config and class names.

The script holds all names, so that pressing TAB imports nothing:
`lit-rlvr completion bash > ~/.local/share/bash-completion/completions/lit-rlvr`, or for zsh
`lit-rlvr completion zsh > ~/.lit-rlvr.zsh` and `source ~/.lit-rlvr.zsh` in `~/.zshrc`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from typing import Literal

from lit_rlvr.cli.early_check import IndexedNames
from lit_rlvr.commands.registry import COMMANDS, WITHOUT_RESULT, registered_commands
from lit_rlvr.configs import Parser, shipped_configs

COMPLETION_SCRIPT = """\
_lit_rlvr() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words
    case "$COMP_CWORD ${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD - 1]}}" in
        "1 "* | "2 help "*) words="{commands}" ;;
        *" evaluate --model" | *" serve --model") words= ;;
        *" --config" | *" -c") words="{configs}" ;;
        *" --model") words="{models}" ;;
        *" --data") words="{data}" ;;
        *) case ${{COMP_WORDS[1]}} in
{options}
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _lit_rlvr lit-rlvr
"""
"""The bash script; `-o default` completes file names when no word fits."""

ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"
"""Commands that let zsh run bash's completions."""


def run(command: str, arguments: list[str]) -> None:
    """Run the command line of `completion`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=__doc__)
    parser.add_argument("shell", type=Literal["bash", "zsh"], help="bash or zsh")
    shell = parser.parse_args(arguments).shell
    print((ZSH if shell == "zsh" else "") + script(), end="")


def script() -> str:
    """Return the script for bash."""
    classes = IndexedNames("fit").index["classes"]
    exported = {key: [path.rpartition(".")[2] for path in classes[key] if path.count(".") == 2] for key in classes}
    options = {
        command: IndexedNames(command).options() if module == COMMANDS["fit"][0] else _in_help(command)
        for command, (module, _) in COMMANDS.items()
    }
    return COMPLETION_SCRIPT.format(
        commands=_words(["help", *COMMANDS, *registered_commands()]), configs=_words(shipped_configs()),
        models=_words(exported["model"]), data=_words({*exported["data"]} - {"PromptDataModule"}),
        options="\n".join(f'            {command}) words="{_words(found)}" ;;' for command, found in options.items()),
    )  # fmt: skip


def _in_help(command: str) -> set[str]:
    """Return the options that a command's help shows."""
    if command == "completion":
        return {"bash", "zsh"}
    shown = StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        import_module(COMMANDS[command][0]).run(command, ["--help"])
    found = set(re.findall(r"(?<!\S)--\w[\w.-]*\w", shown.getvalue()))
    return found | ({"--json"} if command not in WITHOUT_RESULT else set())


def _words(names: Iterable[str]) -> str:
    return " ".join(sorted(names))
