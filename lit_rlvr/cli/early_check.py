"""Prints help, and finds misspelt options, configs and classes in a command line, before torch and Lightning are
imported.

The names come from `options.json`, which `python docs/scripts/options_page.py` writes from the parsers of the commands.
Where it does not say enough (a class of the user's, another version of Lightning), nothing is refused here, and the
parser decides.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from yaml import YAMLError

from lit_rlvr.cli.error_lines import KnownNames, explain
from lit_rlvr.commands.registry import NOT_PARSED
from lit_rlvr.configs import find_configs, load_yaml, read_config
from lit_rlvr.errors import UserError

OPTIONS_INDEX = Path(__file__).with_name("options.json")
"""The names that the parsers know, in texts of names: `options` and `required` of each command, `classes` by the option
that takes them, each with its arguments, the `names` of all classes, also of abstract ones, and the `help` of every
command, as numbers of `paragraphs`."""
OWN_PATH = re.compile(r"(?!(?:lit_rlvr|lightning|torch)\.)[A-Za-z_]\w*(?:[.:][A-Za-z_]\w*)+")
"""A dotted path that may be a class of the user's."""
LAUNCHED = {"LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK"}
"""Environment variables of a run with several processes, of which only the first prints errors."""


class _UnsureError(Exception):
    """The index does not say enough."""


class IndexedNames(KnownNames):
    """The names that the parser of a command knows, from the index.

    Args:
        command: the command.

    Attributes:
        own: the options of the command, without those of the classes that they can name.
        groups: the options that stand for a group of others.
        required: the command's own options without a default.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.index = json.loads(OPTIONS_INDEX.read_text())
        self.own = {*self.index["options"][command].split()}
        self.required = {*self.index["required"][command].split()}
        parents = set()
        for option in self.own:
            parents.add(option.rpartition(".")[0])
        self.groups = {option for option in parents & self.own if f"{option}.help" not in self.own}

    def options(self) -> set[str]:
        options = self.own | NOT_PARSED.get(self.command, set()) | {"--json"}
        for key, classes in self.index["classes"].items():
            if f"--{key}.help" in self.own:
                options |= {f"--{key}.init_args.{option}" for names in classes.values() for option in names.split()}
        return {option for option in options if option.startswith("--")}

    def classes(self) -> set[str]:
        return {*self.index["names"].split()}

    def arguments(self, path: str) -> set[str]:
        return next({*classes[path].split()} for classes in self.index["classes"].values() if path in classes)

    def path_of(self, key: str, cls: str) -> str:
        """Return the path by which the parser names the class of an option.

        Raises:
            _UnsureError: the index does not have it.
        """
        for path in self.index["classes"][key]:
            if cls in (path, path.rpartition(".")[2]):
                return str(path)
        raise _UnsureError


def stored_help(command: str) -> str | None:
    """Return the help of a command from the index; None if the installed Lightning may have other options."""
    index = json.loads(OPTIONS_INDEX.read_text())
    if index["lightning"] != version("lightning"):
        return None
    return "\n\n".join(index["paragraphs"][int(number)] for number in index["help"][command].split())


def check_early(command: str, arguments: Sequence[str]) -> None:
    """Refuse a command line with an unknown config, option or class, as the parser would, but in a second.

    Raises:
        UserError: as the parser's error.
    """
    rest = []
    for argument in arguments:
        if not (command == "fit" and argument == "--dry-run"):
            rest.append(argument)
    if LAUNCHED & {*os.environ} or NOT_PARSED.get(command, set()) & {argument.partition("=")[0] for argument in rest}:
        return
    try:
        rest = find_configs(rest)
        names = IndexedNames(command)
        if names.index["lightning"] != version("lightning"):  # its Trainer may have other options
            return
        problem = next(_problems(rest, names), None)
    except (_UnsureError, OSError, LookupError, AttributeError, ValueError, YAMLError):
        return
    if problem is not None:
        raise UserError(problem)


def _problems(arguments: Sequence[str], names: IndexedNames) -> Iterator[str]:
    """Yield the parser's errors in its order: first wrong classes and their options, then unknown options."""
    known = names.own
    unknown: list[str] = []
    classes: dict[str, str] = {}
    keys: set[str] = set()
    words = iter(arguments)
    for argument in words:
        option, equals, value = argument.partition("=")
        option = option.removesuffix("+")
        if unknown and not argument.startswith("-"):  # its value
            continue
        if not re.match(r"-c$|--(?!help$|print_config$)\w(?!.*\.(help|class_path|init_args)$)", option):
            raise _UnsureError
        key, _, inner = option.removeprefix("--").partition(".")
        if option in known or (key in ("model", "data") and inner):
            value = value if equals else next(words, "--")
            if not equals and value.startswith("--"):
                raise _UnsureError
            loaded = load_yaml(value)
            _check_ours(loaded)
            keys.add(key)
        if option in ("--config", "-c"):
            # merged over its base, or a file
            if isinstance(loaded, dict):
                config = loaded
            else:
                config = read_config(Path(value))
            _check_ours(config)
            for part in {"model", "data"} & {*config}:
                classes[part] = config[part].get("class_path", classes.get(part))
        elif option in ("--model", "--data"):
            if re.fullmatch(r"[A-Za-z]\w*", value) and value not in names.classes() and not Path(value).exists():
                if load_yaml(value) != value:
                    raise _UnsureError
                yield explain(f'Parser key "{key}": Expected a dot import path string: {value}', names)
            classes[key] = value
        elif option in known:
            continue
        elif key in ("model", "data") and inner:
            problem = _problem_of_class(key, names.path_of(key, classes[key]), inner.removeprefix("init_args."), names)
            if problem:
                yield problem
        elif _parent(option, known) in names.groups | {""}:
            unknown.append(option)
        else:
            raise _UnsureError
    if unknown:
        yield explain(f"Unrecognized arguments: {unknown[0]}", names)
    for missing in (names.required - keys, {f"{names.command}.{key}" for key in {"data", "model"} - {*classes}}):
        if missing:
            yield explain(f"arguments are required: {', '.join(sorted(missing))}", names)


def _problem_of_class(key: str, path: str, option: str, names: IndexedNames) -> str:
    """Return the parser's error about an option that a class does not have; "" if it has it.

    Args:
        key: `model` or `data`.
        path: the class.
        option: the option's name, perhaps of a group of options: `kl.coef`.
        names: the names that the parser knows.
    """
    group, dot, field = option.partition(".")
    where = f"Parser key \"{key}\": class_path '{path}'"
    arguments_of_class = names.arguments(path)
    if dot and any(name.startswith(f"{group}.") for name in arguments_of_class):
        field = field.partition(".")[0]
        if f"{group}.{field}" not in arguments_of_class:
            return explain(f"{where}: Unrecognized arguments: --{group}.{field}", names)
    elif group not in arguments_of_class:
        return explain(f"{where}: Option '{group}' is not accepted", names)
    return ""


def _check_ours(value: Any) -> None:
    """Raise `_UnsureError` if a class of the user's may be among the values of a config."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_ours(item)
    elif isinstance(value, str) and OWN_PATH.fullmatch(value) and not Path(value).exists():
        raise _UnsureError


def _parent(option: str, known: set[str]) -> str:
    """Return the longest known option that the name of another begins with; "" if there is none."""
    while option and option not in known:
        option = option.rpartition(".")[0]
    return option
