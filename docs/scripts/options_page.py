"""Generates the configuration reference from signatures and docstrings, and the index of all options.

`python docs/scripts/options_page.py > docs/reference.md` also writes the index, `lit_rlvr/cli/options.json`.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any

from docstring_parser import parse
from jsonargparse import ArgumentParser
from jsonargparse._util import get_import_path
from lightning.pytorch.cli import LightningCLI  # noqa: F401  # defines callbacks before ours, as the command line does

import lit_rlvr.rewards
from lit_rlvr import advantages, algorithms, datamodules
from lit_rlvr.algorithms import SFT, FunctionLoss
from lit_rlvr.algorithms.apmpo_schedule import PowerSchedule
from lit_rlvr.cli.early_check import OPTIONS_INDEX
from lit_rlvr.cli.error_lines import class_arguments, known_classes
from lit_rlvr.cli.lightning_cli import ConfigCheck
from lit_rlvr.commands.registry import COMMANDS
from lit_rlvr.datamodules.base import EvaluationData
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.datamodules.reading.curriculum import Curriculum
from lit_rlvr.datamodules.reading.images import ImageOptions
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.environments import Agent, Calculator, Crop, Environment, EnvironmentReward, Python, SQLShell
from lit_rlvr.evaluation.diversity import CosineSimilarity, SelfBLEU4, SentenceEmbedder
from lit_rlvr.options import KL, AutoLR, Compute, Importance, Lora, Loss, Optim, Teacher
from lit_rlvr.rewards.judges.server import JudgeServer
from lit_rlvr.rollout import FileTransfer, HFEngine, NCCLTransfer, RolloutCallback, VLLMEngine, VLLMServerEngine
from lit_rlvr.rollout.record import Replay
from lit_rlvr.rollout.settings import Evaluation, Safeguards
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.run.monitor import CollapseMonitor
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.progress import Budget
from lit_rlvr.run.trackers import MLflow, Tracker, Trackio, Wandb
from lit_rlvr.run.trackers.feed import TRACKER_NAMES
from lit_rlvr.run.warm_start import WarmStart
from lit_rlvr.sampling import EvalSampling, Sampling
from lit_rlvr.training.teachers import Demonstration

REWARDS = (
    "MathAnswer", "Choice", "OpenAnswer", "PointwiseJudge", "RubricJudge", "PairwiseJudge", "GroupJudge",
    "RewardModel", "RewardModelServer", "Boxes", "Points", "SQLExecution", "CodeTests", "InstructionFollowing",
    "CosineScaled", "RelativeLength", "LCPO", "Format", "Overlong", "RepetitionPenalty", "FunctionReward",
)  # fmt: skip


def options(cls: type) -> Iterator[tuple[str, str, str, str]]:
    """Yield (name, type, default, meaning) of a class's options, including those of its base classes."""
    accepted = {name.split(".")[0] for name in ArgumentParser().add_class_arguments(cls)}  # some fix a base's option
    documented = [parse(inspect.getdoc(owner) or "").params for owner in reversed(cls.__mro__)]
    meanings = {p.arg_name: p.description or "" for params in documented for p in params}  # the nearest class decides
    seen: set[str] = set()
    for owner in cls.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        for parameter in list(inspect.signature(owner.__init__).parameters.values())[1:]:  # type: ignore[misc]
            if parameter.kind is parameter.VAR_KEYWORD or parameter.name in seen or parameter.name not in accepted:
                continue
            seen.add(parameter.name)
            meaning = " ".join(meanings.get(parameter.name, "").split()).replace("|", "\\|")
            yield parameter.name, _type(parameter.annotation), _default(parameter.default), meaning
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(owner.__init__).parameters.values()):  # type: ignore[misc]
            return


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return text.replace("|", "\\|")


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {name: one for name, one in vars(value).items() if name != "given" and one != vars(type(value)())[name]}
        return f"`{{{', '.join(f'{name}: {one}' for name, one in own.items())}}}`" if own else "see below"
    return f"`{value!r}`".replace("\n", "\\n")


def rows(title: str, cls: type, shared: type | None = None) -> list[str]:
    """Return one class as rows of a table: its first sentence, and its options.

    Args:
        shared: class whose options are already in the table; only further options and different defaults are listed.
    """
    summary = parse(inspect.getdoc(cls) or "").short_description or ""
    known = set(options(shared)) if shared else set()
    own = [f"| `{row[0]}` | {row[1]} | {row[2]} | {row[3]} |" for row in options(cls) if row not in known]
    return [f"| **{title}** | | | {' '.join(summary.split()).replace('|', chr(92) + '|')} |", *own]


def options_reference() -> str:
    """Return the whole page."""
    parts = [
        "# Configuration reference",
        "Generated by `python docs/scripts/options_page.py > docs/reference.md`; a test checks that it is current. "
        "`trainer:` takes every option of Lightning's Trainer. Options of `model`, `data`, engines, rewards and "
        "advantages go under `init_args` of their `class_path`. Options shared by all classes of a group are listed "
        "once, at the top of its table.",
    ]
    algorithm, data = algorithms.RLVRModule, datamodules.PromptDataModule
    groups: list[tuple[str, type | None, list[type]]] = [
        ("model", algorithm, [SFT, FunctionLoss, *_public(algorithms)]),
        ("model.advantage", None, [cls for _, cls in sorted(advantages.REGISTRY.items())]),
        ("data", data, [cls for cls in _public(datamodules) if issubclass(cls, data)]),
        (
            "data.reading, images, chat, curriculum, evaluation",
            None,
            [ReadingOptions, ImageOptions, Chat, Curriculum, EvaluationData],
        ),
        ("model.optim, loss, kl, importance, compute", None, [Optim, Loss, KL, Importance, Compute]),
        ("model.schedule of APMPO", None, [PowerSchedule]),
        ("model.lr, lora, teacher", None, [AutoLR, Lora, Teacher, Demonstration]),
        ("rollout", None, [RolloutCallback, Sampling, Evaluation, EvalSampling, Safeguards, Replay]),
        ("rollout.engine", None, [HFEngine, VLLMEngine, VLLMServerEngine]),
        ("rollout.engine.transfer", None, [FileTransfer, NCCLTransfer]),
        (
            "rollout.rewards",
            lit_rlvr.rewards.Reward,
            [*_named(REWARDS), EnvironmentReward],
        ),
        ("server of judges", None, [JudgeServer]),
        ("rollout.environment", Environment, [Calculator, Python, SQLShell, Crop, Agent]),
        ("diversity", None, [SelfBLEU4, CosineSimilarity, SentenceEmbedder]),
        ("run", None, [RunFolder]),
        ("budget", None, [Budget]),
        ("checkpoint", None, [RunCheckpoint]),
        ("collapse", None, [CollapseMonitor]),
        ("trackers", Tracker, [Wandb, MLflow, Trackio]),
        ("warm_start", None, [WarmStart]),
    ]
    for key, shared, classes in groups:
        table = ["| option | type | default | meaning |", "|---|---|---|---|"]
        if shared is not None:
            table += rows("all classes", shared)
        for cls in classes:
            if cls is not shared:
                table += rows(cls.__name__, cls, shared)
        parts += [f"## `{key}`", "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def _named(rewards: Sequence[str]) -> list[type]:
    return [getattr(lit_rlvr.rewards, name) for name in rewards]


def _public(package: ModuleType) -> list[type]:
    return [getattr(package, name) for name in package.__all__]


def options_index() -> str:
    """Return the names that the parsers of the commands know, and their help, as `lit_rlvr.cli.early_check` reads
    them."""
    commands = [command for command, (module, _) in COMMANDS.items() if module == ConfigCheck.__module__]
    parsers = {command: ConfigCheck(command).parser._subcommands_action.choices[command] for command in commands}
    shipped = {
        key: {get_import_path(cls): cls for cls in classes if _is_shipped(cls.__module__)}
        for key, classes in known_classes().items()
    }
    helps = {command: _help(command).split("\n\n") for command in COMMANDS}
    paragraphs = [*dict.fromkeys(paragraph for parts in helps.values() for paragraph in parts)]
    index = {
        "help": {command: " ".join(str(paragraphs.index(part)) for part in parts) for command, parts in helps.items()},
        "paragraphs": paragraphs,
        "lightning": version("lightning"),
        "options": {
            command: _text(option.removesuffix("+") for option in parser._option_string_actions)
            for command, parser in parsers.items()
        },
        "required": {
            command: _text(action.dest for action in parser._actions if action.required)
            for command, parser in parsers.items()
        },
        "classes": {
            key: {path: _text(class_arguments(cls)) for path, cls in classes.items() if not inspect.isabstract(cls)}
            for key, classes in shipped.items()
        },
        "names": _text([*TRACKER_NAMES, *(cls.__name__ for classes in shipped.values() for cls in classes.values())]),
    }
    return json.dumps(index, indent=1, sort_keys=True) + "\n"


def _help(command: str) -> str:
    """Return the help that a command's own parser prints, in lines of 80 characters."""
    os.environ["COLUMNS"] = "80"
    with redirect_stdout(io.StringIO()) as output, suppress(SystemExit):
        import_module(COMMANDS[command][0]).run_command(command, ["--help"])
    return output.getvalue().strip()


def _is_shipped(module: str) -> bool:
    return module.startswith("lit_rlvr.") and not module.startswith("lit_rlvr.commands.init")


def _text(names: Iterable[str]) -> str:
    return " ".join(sorted({*names}))


if __name__ == "__main__":
    OPTIONS_INDEX.write_text(options_index())
    print(options_reference(), end="")
