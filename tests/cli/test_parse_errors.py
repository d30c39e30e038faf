"""The parser's messages as one line each."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import ArgumentError

from lit_rlvr.cli.lightning_cli import ConfigCheck
from lit_rlvr.cli.parse_errors import explain_parse_error

RIGHT: dict[str, Any] = {"data": {"class_path": "Arithmetic"}, "model": {"class_path": "GRPO"}}
SAID: dict[str, tuple[dict[str, Any], str]] = {
    "a list as a class": (
        {"model": ["GRPO"]},
        "model: give a class of type RLVRModule by its class_path, not ['GRPO']",
    ),
    "a number as a class": ({"model": 3}, "model: give a class of type RLVRModule by its class_path, not 3"),
    "another class": (
        {"model": {"class_path": "pathlib.Path"}},
        "model: {'class_path': 'pathlib.Path'} is not a subclass of RLVRModule",
    ),
    "an abstract class": (
        {"model": {"class_path": "lit_rlvr.algorithms.RLVRModule"}},
        "model: {'class_path': 'lit_rlvr.algorithms.RLVRModule'} is abstract, it lacks a required method",
    ),
    "class_path null": (
        {"model": {"class_path": None}},
        "model: a class_path is the name of a class, not {'class_path': None}",
    ),
    "init_args list": (
        {"model": {"class_path": "GRPO", "init_args": [1]}},
        "model.init_args: give a mapping of options, not list",
    ),
    "option of a class": (
        {"model": {"class_path": "GRPO", "init_args": {"lrr": 1}}},
        "model: lit_rlvr.algorithms.GRPO has no option 'lrr'; did you mean 'lr'?",
    ),
    "type in a class": (
        {"model": {"class_path": "GRPO", "init_args": {"lr": "x"}}},
        "model.lr: give a number, not x",
    ),
    "choice": (
        {"model": {"class_path": "GRPO", "init_args": {"lr_schedule": "up"}}},
        "model.lr_schedule: give one of 'constant', 'linear', 'cosine', not up",
    ),
    "type": ({"rollout": {"group_size": "many"}}, "rollout.group_size: give a whole number, not many"),
    "union": ({"budget": {"samples": 1.5}}, "budget.samples: give a whole number, not 1.5"),
    "text for a group": (
        {"rollout": "fast"},
        "rollout: 'fast' is not a group of options; give them by their names",
    ),
    "text for a list": ({"rollout": {"rewards": "MathAnswer"}}, "rollout.rewards: give a list, not MathAnswer"),
    "key of a group": ({"rollout": {"grop_size": 8}}, "unknown key 'rollout.grop_size'; did you mean 'group_size'?"),
    "key of sampling": (
        {"rollout": {"sampling": {"temprature": 1}}},
        "unknown key 'rollout.sampling.temprature'; did you mean 'temperature'?",
    ),
    "key like another group's": ({"run": {"slop": 1}}, "unknown key 'run.slop'"),
    "flag": ({"overwrite": "maybe"}, "overwrite: give true or false, not maybe"),
}


@pytest.fixture(scope="module")
def fit() -> ConfigCheck:
    return ConfigCheck()


@pytest.mark.parametrize("case", SAID)
def test_what_is_wrong_is_said_in_one_line(fit: ConfigCheck, case: str) -> None:
    wrong, said = SAID[case]
    with pytest.raises(ArgumentError) as error:
        fit.check(RIGHT | wrong)
    assert explain_parse_error(error.value) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "stray", "words"], "what is 'stray words' for? An option begins with --"),
        (["fit", "--modle", "GRPO"], "unknown option 'modle'; did you mean 'model'?"),
        (["fit"], "fit.data, fit.model: missing; give a config that sets them, such as --config quickstart"),
    ],
)
def test_arguments_that_have_no_place(fit: ConfigCheck, arguments: list[str], said: str) -> None:
    with pytest.raises(ArgumentError) as error:
        fit.parser.parse_args(arguments)
    assert explain_parse_error(error.value) == said
