"""What a model is evaluated on: a set of questions and the rewards that judge the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from datamodules import PromptDataModule, geometry, medical_vqa, text_math
from datamodules.readers import FORMATS, read_rows
from datamodules.rows import BadRow
from lit_rlvr.configs import config_folder, explain_parse_error, merge
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import Reward, as_rewards

BOXED = {"template": "boxed"}
LAYOUTS: Sequence[tuple[Sequence[set[str]], dict[str, Any], list[Any]]] = (
    ([{"db_id", "question"}], {"class_path": "TextToSQL"}, ["SQLExecution"]),
    ([{"question_content", "public_test_cases"}], {"class_path": "CodeProblems"}, ["CodeTests"]),
    ([{"question", "choices", "answer"}], {"class_path": "MultipleChoice"}, ["Choice"]),
    ([needs for needs, _ in geometry.LAYOUTS], {"class_path": "Geometry"}, [("Choice", "MathAnswer")]),
    ([needs for needs, _ in medical_vqa.LAYOUTS], {"class_path": "MedicalVQA"}, [("Choice", "OpenAnswer")]),
    ([needs for needs, _ in text_math.LAYOUTS], {"class_path": "TextMath", "init_args": BOXED}, ["MathAnswer"]),
)
"""Columns of a file that is no named suite -> its DataModule and rewards; the first that fits."""


@dataclass(frozen=True)
class Suite:
    """A set of questions by its name in the results.

    Args:
        data: has the questions as its test set.
        rewards: what judges an answer.
    """

    name: str
    data: PromptDataModule
    rewards: list[Reward]


def find_suites(asked: str, options: Mapping[str, Any]) -> Iterator[Suite]:
    """The suites of a comma-separated list.

    Args:
        asked: names of shipped suites (`math500`), each with a file of your own in its place if you like
            (`math500=test.jsonl`); YAML files with `data` and `rewards`; files with a known layout.
        options: options of all their DataModules, over their own.

    Raises:
        UserError: there is no such suite, or it cannot be built.
    """
    seen: set[str] = set()
    for item in filter(None, (part.strip() for part in asked.split(","))):
        name, _, location = item.partition("=")
        path = Path(name)
        if path.suffix in FORMATS:
            name, values = path.stem, by_columns(name)
        else:
            values = read_suite(path if path.suffix == ".yaml" else shipped(name))
            name = path.stem
        own = {"name": name} | ({"test": location} if location else {})
        values = merge(values, {"data": {"init_args": own | dict(options)}})
        if name in seen:
            raise UserError(f"--suite: two suites are called {name}; rename one of the files")
        seen.add(name)
        yield build(name, values)


def shipped(name: str) -> Path:
    """The file of a shipped suite."""
    folder = config_folder() / "suites"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"suites: {', '.join(known)}; or a {', '.join(FORMATS)} file"
        raise UserError(f"--suite: there is no suite {name!r}; {hint}")
    return path


def read_suite(path: Path) -> dict[str, Any]:
    """A suite's `data` and `rewards`."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--suite: {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or {*values} != {"data", "rewards"}:
        raise UserError(f"--suite: {path} must hold `data` and `rewards`, as the shipped suites do")
    return values


def by_columns(location: str) -> dict[str, Any]:
    """The suite of a file, told by the columns of its first usable row."""
    row = next((row.value for row in read_rows(location, "test") if not isinstance(row.value, BadRow)), None)
    if row is None:
        raise UserError(f"--suite: {location} has no usable row")
    for layouts, data, rewards in LAYOUTS:
        if any(needs <= row.keys() for needs in layouts):
            built = [_reward(reward) for reward in rewards]
            return {"data": merge(data, {"init_args": {"test": location}}), "rewards": built}
    raise UserError(
        f"--suite: {location} has no known layout, its columns are {', '.join(row)}; write a suite file with a "
        "DataModule and its `columns`"
    )


def _reward(reward: Any) -> dict[str, Any]:
    """A reward by its class, or one and the other that judges what it does not."""
    if isinstance(reward, str):
        return {"class_path": reward}
    first, otherwise = reward
    return {"class_path": first, "init_args": {"otherwise": {"class_path": otherwise}}}


def build(name: str, values: dict[str, Any]) -> Suite:
    """A suite from its settings."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PromptDataModule, "data", required=True)
    parser.add_argument("--rewards", type=list[Reward | str], required=True)
    try:
        built = parser.instantiate_classes(parser.parse_object(values))
    except ArgumentError as error:
        raise UserError(f"--suite: {name}: {explain_parse_error(error)}") from error
    return Suite(name, built.data, as_rewards(built.rewards))
