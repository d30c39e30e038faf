"""Finds misspelt options, configs and classes in a command line before torch and Lightning are imported.

The names come from the text of our sources and of Lightning's Trainer. Where these do not say enough (a class of the
user's, a file that cannot be read), nothing is refused here, and the parser decides.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yaml import YAMLError

import lit_rlvr
from lit_rlvr.cli.commands import NOT_PARSED
from lit_rlvr.cli.errors import KnownNames, explain
from lit_rlvr.configs import find_configs, load_yaml, read_config
from lit_rlvr.errors import UserError

GROUP_CLASSES = {
    "rollout": "RolloutCallback", "run": "RunFolder", "budget": "Budget", "checkpoint": "RunCheckpoint",
    "collapse": "CollapseMonitor", "warm_start": "WarmStart", "trainer": "RLVRTrainer",
}  # fmt: skip
"""Option group -> the name of the class that it configures."""

CLASSES = {
    "model": "RLVRModule", "data": "PromptDataModule", "rollout.rewards": "Reward",
    "rollout.environment": "Environment",
    "rollout.engine": "RolloutEngine", "trackers": "Tracker", "trainer.accelerator": "", "trainer.callbacks": "",
    "trainer.logger": "", "trainer.plugins": "", "trainer.profiler": "", "trainer.strategy": "",
}  # fmt: skip
"""Option that takes classes -> the name of their base; "" for classes of Lightning's."""

TOP_OPTIONS = {
    "-c", "-h", "--config", "--help", "--print_config", "--seed_everything", "--model", "--data", "--overwrite",
    "--trackers", "--json",
}  # fmt: skip
TRAINER_ARGUMENTS = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
"""Arguments of the Trainer's methods that are not options."""
EXTERNAL = {"ABC", "ABCMeta", "Callback", "Checkpoint", "LightningDataModule", "LightningModule", "Generic", "Protocol"}
"""Bases of our classes that have no options."""
OWN_PATH = re.compile(r"(?!(?:lit_rlvr|lightning|torch)\.)[A-Za-z_]\w*(?:[.:][A-Za-z_]\w*)+")
"""A dotted path that may be a class of the user's."""
LAUNCHED = {"LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK"}
"""Environment variables of a run with several processes, of which only the first prints errors."""


class _UnsureError(Exception):
    """The sources do not say enough."""


@cache
def _index() -> dict[str, tuple[Path, list[str]]]:
    """Return our classes, except the templates of `init`, and Lightning's Trainer: name -> (file, bases)."""
    package = Path(lit_rlvr.__file__).parent
    found: dict[str, tuple[Path, list[str]]] = {}
    for file in [*package.rglob("*.py"), *(package / "datamodules").resolve().rglob("*.py")]:
        if file.is_relative_to(package / "commands" / "init"):
            continue
        for name, bases in re.findall(r"^class (\w+)(?:\(([^)]*)\))?:", file.read_text(), re.MULTILINE):
            found.setdefault(name, (file, re.findall(r"([\w.]+)(?:\[[^]]*\])?(?=,|$)", bases)))
    spec = find_spec("lightning")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        found["lightning.pytorch.Trainer"] = (Path(folder, "pytorch", "trainer", "trainer.py"), [])
    return found


@cache
def _definition(name: str) -> ast.ClassDef:
    file, name = _index()[name][0], name.rpartition(".")[2]
    return next(n for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef) and n.name == name)


def _is_dataclass(name: str) -> bool:
    return name in _index() and any("dataclass" in ast.unparse(d) for d in _definition(name).decorator_list)


def _arguments(name: str) -> dict[str, str]:
    """Return the arguments of a class and of its bases, each with its type."""
    if name.rpartition(".")[2] in EXTERNAL:
        return {}
    if name not in _index():
        raise _UnsureError
    bases = _index()[name][1]
    found = {option: kind for base in bases for option, kind in _arguments(base).items()}
    body = _definition(name).body
    init = next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        if init.args.kwarg is not None and not bases:
            raise _UnsureError
        found |= _parameters(init)
    elif _is_dataclass(name):
        fields = [n for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        found |= {ast.unparse(n.target): ast.unparse(n.annotation) for n in fields}
    return found


def _parameters(function: ast.FunctionDef) -> dict[str, str]:
    given = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in given if a.arg != "self"}


def _subclasses(base: str) -> set[str]:
    """Return the names of a class and of all classes under it."""
    below = {name for name, (_, bases) in _index().items() if base in bases}
    return {base}.union(*map(_subclasses, below))


def _method(command: str) -> ast.FunctionDef:
    """Return the method of the Trainer that is a command."""
    classes = map(_definition, ("RLVRTrainer", "Trainer", "lightning.pytorch.Trainer"))
    methods = (node for cls in classes for node in cls.body if isinstance(node, ast.FunctionDef))
    return next(method for method in methods if method.name == command)


class SourceNames(KnownNames):
    """The names that the parser of a command knows, from the sources.

    Args:
        command: the command.

    Attributes:
        groups: the options that stand for a group of others.
        required: the command's own options without a default.
        own: the options of the command, without those of the classes that they can name.
    """

    def __init__(self, command: str) -> None:
        method = _method(command)
        given = [*_parameters(method)]
        self.command = command
        self.required = {*given[: len(given) - len(method.args.defaults)]} - TRAINER_ARGUMENTS
        self.groups = {f"--{group}" for group in GROUP_CLASSES}
        self.own = (
            TOP_OPTIONS | {f"--{key}.help" for key in CLASSES} | {f"--{name}" for name in {*given} - TRAINER_ARGUMENTS}
        )
        for group, cls in GROUP_CLASSES.items():
            for option, kind in _arguments(cls).items():
                self.own.add(key := f"--{group}.{option}")
                if _is_dataclass(kind):
                    self.groups.add(key)
                    self.own |= {f"{key}.{inner}" for inner in _arguments(kind)}
        self.own |= self.groups

    def options(self) -> set[str]:
        found = self.own | NOT_PARSED.get(self.command, set())
        for key, base in CLASSES.items():
            for cls in _subclasses(base) if base else ():
                found |= {f"--{key}.init_args.{option}" for option in _arguments(cls)}
        return {option for option in found if option.startswith("--")}

    def classes(self) -> set[str]:
        keys = re.compile(r'^    key(?:, \w+)? = "(\w+)"', re.MULTILINE)
        named = {key for cls in _subclasses("Tracker") for key in keys.findall(_index()[cls][0].read_text())}
        return named.union(*(_subclasses(base) for base in (*CLASSES.values(), "Advantage") if base)) - {"Tracker"}

    def arguments(self, path: str) -> set[str]:
        return {*_arguments(path.rpartition(".")[2])}


def check_early(command: str, arguments: Sequence[str]) -> None:
    """Refuse a command line with an unknown config, option or class, as the parser would, but in a second.

    Raises:
        UserError: as the parser's error.
    """
    rest = [argument for argument in arguments if not (command == "fit" and argument == "--dry-run")]
    if LAUNCHED & {*os.environ} or NOT_PARSED.get(command, set()) & {argument.partition("=")[0] for argument in rest}:
        return
    rest = find_configs(rest)
    try:
        problem = next(_problems(rest, SourceNames(command)), None)
    except (_UnsureError, OSError, SyntaxError, LookupError, AttributeError, RuntimeError, ValueError, YAMLError):
        return
    if problem is not None:
        raise UserError(problem)


def _problems(arguments: Sequence[str], names: SourceNames) -> Iterator[str]:
    """Yield the parser's errors in its order: first wrong classes and their options, then unknown options."""
    known = names.own
    unknown: list[str] = []
    classes: dict[str, str] = {}
    found: set[str] = set()
    given = iter(arguments)
    for argument in given:
        option, equals, value = argument.partition("=")
        option = option.removesuffix("+")
        if unknown and not argument.startswith("-"):  # its value
            continue
        if not re.match(r"-c$|--(?!help$|print_config$)\w(?!.*\.(help|class_path|init_args)$)", option):
            raise _UnsureError
        key, _, inner = option.removeprefix("--").partition(".")
        if option in known or (key in ("model", "data") and inner):
            value = value if equals else next(given, "--")
            if not equals and value.startswith("--"):
                raise _UnsureError
            _check_ours(load_yaml(value))
            found.add(key)
        if option in ("--config", "-c"):
            config = read_config(Path(value))
            _check_ours(config)
            for part in {"model", "data"} & {*config}:
                classes[part] = config[part].get("class_path", classes.get(part))
        elif option in ("--model", "--data"):
            if re.fullmatch(r"[A-Za-z]\w*", value) and value not in _index() and not Path(value).exists():
                if load_yaml(value) != value:
                    raise _UnsureError
                yield explain(f'Parser key "{key}": Expected a dot import path string: {value}', names)
            classes[key] = value
        elif option in known:
            continue
        elif key in ("model", "data") and inner:
            inner = inner.removeprefix("init_args.").partition(".")[0]
            path = _exported(key, classes[key])
            if inner not in names.arguments(path):
                yield explain(f"Parser key \"{key}\": class_path '{path}': Option '{inner}' is not accepted", names)
        elif _parent(option, known) in names.groups | {""}:
            unknown.append(option)
        else:
            raise _UnsureError
    if unknown:
        yield explain(f"Unrecognized arguments: {unknown[0]}", names)
    for missing in (names.required - found, {f"{names.command}.{key}" for key in {"data", "model"} - {*classes}}):
        if missing:
            yield explain(f"arguments are required: {', '.join(sorted(missing))}", names)


def _check_ours(value: Any) -> None:
    """Raise `_UnsureError` if a class of the user's may be among the values of a config."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_ours(item)
    elif isinstance(value, str) and OWN_PATH.fullmatch(value) and not Path(value).exists():
        raise _UnsureError


def _exported(key: str, cls: str) -> str:
    """Return the path of an algorithm or a data set by which the parser names it."""
    package = {"model": "algorithms", "data": "datamodules"}[key]
    name = cls.removeprefix(f"lit_rlvr.{package}.")
    exported = (Path(lit_rlvr.__file__).parent / package / "__init__.py").read_text()
    if f'    "{name}",' not in exported or name not in _subclasses(CLASSES[key]) - {CLASSES[key]}:
        raise _UnsureError
    return f"lit_rlvr.{package}.{name}"


def _parent(option: str, known: set[str]) -> str:
    """Return the longest known option that the name of another begins with; "" if there is none."""
    while option and option not in known:
        option = option.rpartition(".")[0]
    return option
