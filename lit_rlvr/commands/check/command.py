"""`lit-rlvr check CLASS`: measure an algorithm or an advantage, a line per property; exit with 1 if one fails."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lit_rlvr import algorithms
from lit_rlvr.advantages import REGISTRY, Advantage
from lit_rlvr.algorithms import RLVRModule
from lit_rlvr.commands.check.properties import Finding, check_advantage, check_algorithm
from lit_rlvr.commands.parity.command import build_object
from lit_rlvr.common.settings import dotted_path_of
from lit_rlvr.common.terminal import Terminal, show_result
from lit_rlvr.configs import Parser, find_config, load_config
from lit_rlvr.errors import UserError, user_line

EXIT_FAILED = 1
"""Exit status when a property does not hold."""


def run(command: str, arguments: list[str]) -> int:
    """Run the command line of `check`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=__doc__)
    parser.add_argument("name", type=str | None, nargs="?",
                        help="GRPO, agrae, my_task.Plain or the like; default: the config's algorithm")  # fmt: skip
    parser.add_argument("--init_args", type=dict[str, Any], default={},
                        help="options of the class: --init_args.clip_low 0.1")  # fmt: skip
    parser.add_argument(
        "--config", type=str | None, help="take the class, if none is given, and options from its `model`"
    )
    config = parser.parse_args(arguments)
    name, options = config.name, dict(config.init_args)
    if config.config is not None:
        model = load_config(find_config(config.config)).get("model") or {}
        name = name or model.get("class_path")
        options = {**(model.get("init_args") or {}), **options}
    if name is None:
        raise UserError("check: give an algorithm or an advantage, such as GRPO or my_task.Plain, or a --config")
    findings = check(name, options)
    failed = [finding.name for finding in findings if not finding.ok]
    result = [vars(finding) | {"ok": finding.ok} for finding in findings]
    show_result({"class": name, "ok": not failed, "properties": result}, lambda: print_findings(name, findings))
    return EXIT_FAILED if failed else 0


def check(name: str, options: Mapping[str, Any]) -> list[Finding]:
    """Measure the class or function that a name stands for.

    Args:
        options: the class's `init_args`.

    Raises:
        UserError: there is nothing of that name, it is neither an algorithm nor an advantage, or an option is wrong.
    """
    target = REGISTRY.get(name) or (import_target(name) if "." in name else find_shipped(name))
    if not isinstance(target, type):
        if options:
            raise UserError(f"check: {name} is a function, which takes no options; leave out {', '.join(options)}")
        return check_advantage(name)
    kind = next((kind for kind in (RLVRModule, Advantage) if issubclass(target, kind)), None)
    if kind is None:
        raise UserError(
            f"check: {name} is neither an algorithm (RLVRModule) nor an advantage (Advantage, or a function)"
        )
    path = dotted_path_of(target)
    instance = build_object({"class_path": path, "init_args": dict(options)}, f"check: {name}", kind)
    return check_algorithm(instance) if kind is RLVRModule else check_advantage(instance)


def import_target(path: str) -> Any:
    """Import the class or function of a dotted path."""
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        where = f" at {line}" if (line := user_line(error)) else ""
        raise UserError(f"check: {path!r} cannot be imported ({error}{where})") from error


def find_shipped(name: str) -> type:
    """Return a shipped class by its short name."""
    losses = {name: getattr(algorithms, name) for name in algorithms.__all__ if name != RLVRModule.__name__}
    found = losses | {cls.__name__: cls for cls in REGISTRY.values()}
    if name not in found:
        names = ", ".join([*losses, *sorted(REGISTRY)])
        raise UserError(f"check: there is no {name!r}; there are {names}, and dotted paths such as my_task.Plain")
    return found[name]


def print_findings(name: str, findings: list[Finding]) -> None:
    """Print a line for each property, and a summary."""
    console = Terminal()
    for finding in findings:
        console.print(str(finding), soft_wrap=True)
    failed = sum(not finding.ok for finding in findings)
    console.print(f"{name}: {failed} of {len(findings)} properties FAILED" if failed else f"{name}: all hold")
