"""`lit-rlvr check CLASS`: measure an algorithm, an advantage or a term, a line per property; exit with 1 if one fails.
With --data, count the errors of a reward on rewritten answers of a set; with --text, show how a reward judges one
text."""

from __future__ import annotations

import inspect
import sys
from contextlib import closing
from typing import Any

from lit_rlvr import algorithms, rewards
from lit_rlvr.advantages import REGISTRY, Advantage
from lit_rlvr.algorithms import FunctionLoss, RLVRModule
from lit_rlvr.commands.check.checkup import check_reward, written
from lit_rlvr.commands.check.losses import Finding, check_advantage, check_algorithm
from lit_rlvr.commands.check.parity import build_object
from lit_rlvr.commands.check.printed_reward import print_checkup, print_stages
from lit_rlvr.commands.check.replay import OF_A_MODEL
from lit_rlvr.commands.check.sets import read_set
from lit_rlvr.common.init_arguments import dotted_path_of
from lit_rlvr.common.packages import import_path
from lit_rlvr.common.terminal import Terminal, show_result
from lit_rlvr.configs import Parser, find_config, load_config
from lit_rlvr.conformance.published import LOSSES
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import FunctionReward, Reward
from lit_rlvr.training.terms import Term
from lit_rlvr.types import Sample

_PARTS = [*(getattr(module, name) for module in (algorithms, rewards) for name in module.__all__), *REGISTRY.values()]
SHIPPED: dict[str, type] = {}
"""The shipped algorithms, rewards and advantages by their names."""
for _part in (*_PARTS, FunctionLoss):
    if isinstance(_part, type) and issubclass(_part, RLVRModule | Advantage | Reward):
        SHIPPED[_part.__name__] = _part
del SHIPPED["RLVRModule"], SHIPPED["Reward"]  # their bases


def make_parser(command: str) -> Parser:
    """Return the parser of the options of `check`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=__doc__)
    parser.add_argument(
        "name",
        type=str | None,
        nargs="?",
        help="GRPO, agrae, MathAnswer, my_task.Plain; default: the config's algorithm",
    )
    parser.add_argument(
        "--init_args", type=dict[str, Any], default={}, help="options of the class: --init_args.clip_low 0.1"
    )
    parser.add_argument(
        "--config", type=str | None, help="take the class, if none is given, and options from its `model`"
    )
    parser.add_argument(
        "--data", type=str, default=None, help="of a reward: rows to check it on: a config, TextMath=FILE, or a file"
    )
    parser.add_argument("--rows", type=int, default=200, help="number of rows of --data, drawn by --seed")
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no further rows after this time")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument(
        "--text", type=str, default=None, help="of a reward: the completion to judge, - for what stands on stdin"
    )
    parser.add_argument("--reference", type=str, default=None, help="the reference answer for --text")
    parser.add_argument("--prompt", type=str, default="", help="the question for --text")
    parser.add_argument("--options", type=str, nargs="+", default=[], help="a choice's options for --text")
    parser.add_argument(
        "--row", type=dict[str, Any], default={}, help="further columns for --text: --row.databases '[shop.sqlite]'"
    )
    return parser


def run_command(command: str, arguments: list[str]) -> int:
    """Run the command line of `check`."""
    config = make_parser(command).parse_args(arguments)
    model = {} if config.config is None else load_config(find_config(config.config)).get("model") or {}
    name = config.name or model.get("class_path")
    judges = config.data is not None or config.text is not None
    if name is None and judges:
        raise UserError("check: give a reward, such as MathAnswer or my_task.my_reward, before --data or --text")
    if name is None:
        raise UserError(
            "check: give an algorithm, an advantage or a reward, such as GRPO, agrae or my_task.reward, or a --config"
        )
    if judges:
        show_checkup(name, config)
        return 0
    findings = check_by_name(name, {**(model.get("init_args") or {}), **config.init_args})
    failed = []
    for finding in findings:
        if not finding.ok:
            failed.append(finding.name)
    result = []
    for finding in findings:
        result.append(vars(finding) | {"ok": finding.ok})
    show_result({"class": name, "ok": not failed, "properties": result}, lambda: print_findings(name, findings))
    return int(bool(failed))


def show_checkup(name: str, config: Any) -> None:
    """Check a reward on a set, or show how it judges a text."""
    if config.text is not None and config.reference is None:
        raise UserError("--text: give the --reference answer, too")
    with closing(build_reward(name, dict(config.init_args))) as reward:
        if config.text is not None:
            show_judgement(name, reward, config)
            return
        checkup = check_reward(reward, read_set(config.data, config.rows, config.seed), config.seconds)
        show_result(
            {"class": name, "data": config.data, **checkup.as_json()},
            lambda: print_checkup(f"{name} on {config.data}", checkup),
        )


def build_reward(name: str, options: dict[str, Any]) -> Reward:
    """Return the reward that a name stands for, as a config's `rollout.rewards` would.

    Raises:
        UserError: there is no such reward, or an option is wrong.
    """
    if "." in name:
        target = import_path("check", name)
    else:
        target = SHIPPED.get(name)
    if isinstance(target, type) and issubclass(target, Reward):
        reward: Reward = build_object(
            {"class_path": dotted_path_of(target), "init_args": options}, f"check: {name}", Reward
        )
        return reward
    if not callable(target) or (isinstance(target, type) and issubclass(target, RLVRModule | Advantage)):
        known = ", ".join(known for known, cls in SHIPPED.items() if issubclass(cls, Reward))
        raise UserError(f"check: {name!r} is no reward; there are {known}, and dotted paths such as my_task.my_reward")
    return FunctionReward(name, options)


def show_judgement(name: str, reward: Reward, config: Any) -> None:
    """Print each stage in which a reward judges the text that the user gives."""
    text = sys.stdin.read() if config.text == "-" else config.text
    sample = Sample(
        "--text", config.prompt, config.reference, row=dict(config.row), source="--text", options=tuple(config.options)
    )
    completion = written(text)
    stages = reward.explain(completion, sample)
    (result,) = reward.score([(completion, sample)])
    verdict = {True: "right", False: "wrong", None: "does not say whether it is right"}[result.correct]
    show_result(
        {
            "class": name,
            **vars(result),
            "stages": [{"stage": stage, "result": judgement} for stage, judgement in stages],
        },
        lambda: print_stages(stages, f"{name}: {verdict}, value {result.value:g}, status {result.status}"),
    )


def check_by_name(name: str, options: dict[str, Any]) -> list[Finding]:
    """Measure the class or function that a name stands for; compare our losses with their published values.

    A term is measured in GRPO's loss.

    Args:
        name: a class of an algorithm, an advantage or a term, or the dotted path of a function: of a loss if it takes
            `x`, as `FunctionLoss` does, else of an advantage.
        options: the class's `init_args`.

    Raises:
        UserError: there is nothing of that name, it is none of these, or an option is wrong.
    """
    target = REGISTRY.get(name) or (import_path("check", name) if "." in name else SHIPPED.get(name))
    if target is None:
        names = ", ".join(
            [*(known for known, cls in SHIPPED.items() if issubclass(cls, RLVRModule)), *sorted(REGISTRY)]
        )
        raise UserError(f"check: there is no {name!r}; there are {names}, and dotted paths such as my_task.Plain")
    if not isinstance(target, type):
        if options:
            raise UserError(f"check: {name} is a function, which takes no options; leave out {', '.join(options)}")
        if callable(target) and "x" in inspect.signature(target).parameters:
            return check_algorithm(FunctionLoss(target))
        return check_advantage(name)
    kind = next((kind for kind in (RLVRModule, Advantage, Term) if issubclass(target, kind)), None)
    if kind is None:
        if issubclass(target, Reward):
            raise UserError(f"check: {name} is a reward; give rows to check it on with --data, or a --text to judge")
        raise UserError(
            f"check: {name} is neither an algorithm (RLVRModule, or a function of x) nor an advantage (Advantage, or a "
            "function) nor a term (Term) nor a reward"
        )
    instance = build_object({"class_path": dotted_path_of(target), "init_args": options}, f"check: {name}", kind)
    if kind is Advantage:
        return check_advantage(instance)
    if kind is Term:
        return check_term(name, instance)
    is_published = target in vars(algorithms).values() and target.__name__ in LOSSES and not options
    return check_algorithm(instance, target.__name__ if is_published else None)


def check_term(name: str, term: Term) -> list[Finding]:
    """Measure GRPO's loss with a term.

    Raises:
        UserError: the term needs what only a model has.
    """
    missing = []
    for need in term.needs:
        if need in OF_A_MODEL:
            missing.append(need)
    if missing:
        raise UserError(
            f"check: {name} needs {', '.join(missing)} of a model, which frozen batches have not; try it in a run"
        )
    return check_algorithm(algorithms.GRPO(terms=[term]))


def print_findings(name: str, findings: list[Finding]) -> None:
    """Print a line for each property, and a summary."""
    console = Terminal()
    for finding in findings:
        console.print(str(finding), soft_wrap=True)
    failed = sum(not finding.ok for finding in findings)
    console.print(f"{name}: {failed} of {len(findings)} properties FAILED" if failed else f"{name}: all hold")
