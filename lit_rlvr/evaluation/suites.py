"""Suites: sets of questions for evaluating a model, with the rewards that judge the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError

import lit_rlvr.environments
import lit_rlvr.rewards
from lit_rlvr.common.log import log
from lit_rlvr.configs import Parser, find_shipped, import_classes, merge, read_config, require_keys, shipped_files
from lit_rlvr.datamodules import PromptDataModule, geometry, medical_vqa, text_math
from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.datamodules.reading.readers import FORMATS, file_type, read_rows
from lit_rlvr.environments import Environment, as_environment
from lit_rlvr.environments.base import rewards_with
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.protocols import PROMPT_SETTINGS, SAMPLING, Protocol, make_protocol
from lit_rlvr.rewards import Reward

import_classes(lit_rlvr.environments, lit_rlvr.rewards)

BOXED_TEMPLATE = {"chat": {"template": "boxed"}}
MATH = {"class_path": "MathAnswer"}
SUITE_LAYOUTS: Sequence[tuple[Sequence[set[str]], dict[str, Any], dict[str, Any]]] = (
    (
        [{"prompt", "answer", "options"}],
        {"class_path": "lit_rlvr.datamodules.PromptDataModule"},
        {"class_path": "Choice", "init_args": {"otherwise": MATH}},
    ),
    ([{"db_id", "question"}], {"class_path": "TextToSQL"}, {"class_path": "SQLExecution"}),
    ([{"question_content", "public_test_cases"}], {"class_path": "CodeProblems"}, {"class_path": "CodeTests"}),
    ([{"question", "choices", "answer"}], {"class_path": "MultipleChoice"}, {"class_path": "Choice"}),
    (
        [{"prompt", "instruction_id_list", "kwargs"}],
        {"class_path": "lit_rlvr.datamodules.PromptDataModule"},
        {"class_path": "InstructionFollowing", "init_args": {"truncated_is_wrong": False}},
    ),
    (
        [required for required, _ in geometry.GEOMETRY_LAYOUTS],
        {"class_path": "Geometry"},
        {"class_path": "Choice", "init_args": {"otherwise": MATH}},
    ),
    (
        [required for required, _ in medical_vqa.MEDICAL_LAYOUTS],
        {"class_path": "MedicalVQA"},
        {"class_path": "Choice", "init_args": {"otherwise": {"class_path": "OpenAnswer"}}},
    ),
    (
        [required for required, _ in text_math.MATH_LAYOUTS],
        {"class_path": "TextMath", "init_args": BOXED_TEMPLATE},
        MATH,
    ),
)
"""Columns of a file that is not a named suite -> its DataModule and reward; the first match counts."""


@dataclass(frozen=True)
class Suite:
    """A set of questions.

    Args:
        name: the suite's name in the results.
        data: DataModule with the questions as its test set.
        rewards: the rewards that judge an answer.
        protocol: the sampling and prompts of its questions.
        environment: the environment that answers the model between its turns; None = the model answers in one turn.
    """

    name: str
    data: PromptDataModule
    rewards: list[Reward]
    protocol: Protocol
    environment: Environment | None = None


SuiteArgument = str | list[str | dict[str, Any]]
"""Type of `--suite`: names separated by commas, or a list of suites, each alone or with its own settings."""
SUITE_SETTINGS = ("suite", "protocol", "columns", *SAMPLING, *PROMPT_SETTINGS)
"""Settings of a suite in such a list."""


def find_suites(
    argument: SuiteArgument,
    options: Mapping[str, Any],
    shared_settings: Mapping[str, Any],
    environment: Environment | None = None,
) -> Iterator[Suite]:
    """Yield the suites that `--suite` names.

    Args:
        argument: names of shipped suites (`math500`), optionally with your own file (`math500=test.jsonl`); YAML files
            with `data` and `rewards`; files with a known layout, optionally with a name (`mine=test.jsonl`). A mapping
            holds one of these as `suite`, with its own `columns`, `protocol` and settings.
        options: options of the DataModules of all suites.
        shared_settings: protocol and settings of all suites, as in `make_protocol`.
        environment: the environment of suites that name none.

    Raises:
        UserError: there is no such suite, or it cannot be built.
    """
    seen: set[str] = set()
    for item in list_items(argument):
        name, values = find_suite(str(item["suite"]), "columns" in item)
        if name in seen:
            raise UserError(f"--suite: two suites are called {name}; rename one of the files")
        seen.add(name)
        try:
            protocol = make_protocol(name, item, shared_settings)
        except UserError as error:
            raise UserError(f"--suite: {name}: {error}") from error
        columns = {"columns": item["columns"]} if "columns" in item else {}
        overrides = {"name": name} | dict(options) | columns | prompt_options(name, values, protocol)
        yield build_suite(name, merge(values, {"data": {"init_args": overrides}}), protocol, environment)


def list_items(argument: SuiteArgument) -> list[dict[str, Any]]:
    """Return each suite of `--suite` with its own settings.

    Raises:
        UserError: an entry is neither a suite nor a mapping with one.
    """
    entries = argument.split(",") if isinstance(argument, str) else argument
    items = []
    for entry in entries:
        if isinstance(entry, str):
            items.append({"suite": entry.strip()})
        else:
            items.append(entry)
    for item in items:
        if not isinstance(require_keys(item, SUITE_SETTINGS, "--suite").get("suite"), str):
            raise UserError(f"--suite: {item} names no `suite`")
    return [item for item in items if item["suite"]]


def prompt_options(name: str, values: Mapping[str, Any], protocol: Protocol) -> dict[str, Any]:
    """Return the protocol's prompts as options of a suite's DataModule.

    A system prompt tells the model how to answer. So it also replaces the suite's template, which would be a second
    instruction, unless the protocol has a template too.
    """
    prompts = dict(protocol.prompts)
    template = ((values["data"].get("init_args") or {}).get("chat") or {}).get("template")
    if template is not None and "system_prompt" in prompts and "template" not in prompts:
        log.info("%s: the system prompt given replaces the template %r of the suite", name, template)
        prompts["template"] = "{prompt}"
    if prompts:
        return {"chat": prompts}
    return {}


def find_suite(item: str, has_columns: bool = False) -> tuple[str, dict[str, Any]]:
    """Return one suite's name and settings.

    Args:
        item: a shipped suite's name, a file or a hub name, as given to `--suite`.
        has_columns: whether the user names the columns; then a file of any layout holds mathematical questions.
    """
    name, _, location = item.partition("=")
    path = Path(name)
    if file_type(path) in FORMATS:
        stem = path.name.removesuffix(file_type(path))
        return stem, suite_from_columns(name, stem, has_columns)
    if location and path.suffix != ".yaml" and name not in shipped_files("suites"):
        return name, suite_from_columns(location, name, has_columns)
    values = read_suite(find_shipped("suites", name, "--suite", "suite", f"; or a {', '.join(FORMATS)} file"))
    return path.stem, merge(values, {"data": {"init_args": {"test": location}}}) if location else values


def read_suite(path: Path) -> dict[str, Any]:
    """Read a suite's `data`, `rewards` and optional `environment`."""
    values = read_config(path, ("data", "rewards", "environment"), "--suite")
    if {*values} - {"environment"} != {"data", "rewards"}:
        raise UserError(f"--suite: {path} must hold `data` and `rewards`, like the shipped suites")
    return values


def suite_from_columns(location: str, name: str, has_columns: bool = False, option: str = "--suite") -> dict[str, Any]:
    """Return the suite for a file with the columns of its first usable row.

    Args:
        location: the file or the hub name.
        name: the suite's name.
        has_columns: whether the user names the columns; then a file of unknown layout holds mathematical questions.
        option: the option that messages name.

    Raises:
        UserError: no known layout has these columns; the message shows the suite file to write instead.
    """
    row = next((row.value for row in read_rows(location, "test") if not isinstance(row.value, BadRow)), None)
    if row is None:
        raise UserError(f"{option}: {location} has no usable row")
    for layouts, data, reward in SUITE_LAYOUTS:
        if any(required <= row.keys() for required in layouts):
            log.info("%s: %s with %s, by its columns", name, data["class_path"], reward["class_path"])
            return {"data": merge(data, {"init_args": {"test": location}}), "rewards": [deepcopy(reward)]}
    if has_columns:
        return {"data": {"class_path": "TextMath", "init_args": BOXED_TEMPLATE | {"test": location}}, "rewards": [MATH]}
    raise UserError(
        f"{option}: {location} has no known layout, its columns are {', '.join(map(str, row))}; write {name}.yaml with "
        f"the columns of question and answer, such as {example(location, list(map(str, row)))} and give "
        f"{option} {name}.yaml"
    )


def example(location: str, columns: list[str]) -> str:
    """Return a suite file for mathematical questions, in one line."""
    init_args = {"test": location, "columns": {"prompt": columns[0], "answer": columns[-1]}} | BOXED_TEMPLATE
    values = {"data": {"class_path": "TextMath", "init_args": init_args}, "rewards": ["MathAnswer"]}
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=float("inf")).strip()


def build_suite(name: str, values: dict[str, Any], protocol: Protocol, environment: Environment | None = None) -> Suite:
    """Build a suite from its settings.

    Args:
        name: the suite's name.
        values: the settings: `data`, `rewards` and perhaps `environment`.
        protocol: the sampling and prompts of its questions.
        environment: the environment if the settings name none.
    """
    parser = Parser()
    parser.add_subclass_arguments(PromptDataModule, "data", required=True)
    parser.add_argument("--rewards", type=list[Reward | str], required=True)
    parser.add_argument("--environment", type=Environment | str | dict[str, str] | None)
    try:
        built = parser.instantiate_classes(parser.parse_object(values))
    except ArgumentError as error:
        error.add_note(f"--suite: {name}")  # names the suite for the command line
        raise
    environment = as_environment(built.environment) or environment
    return Suite(name, built.data, rewards_with(environment, built.rewards), protocol, environment)
