"""A list in a config or on the command line replaces the list before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_rlvr.cli.lightning_cli import ConfigCheck
from lit_rlvr.configs import changed_classes, find_configs
from lit_rlvr.training.terms import Term


class Own(Term):
    """A term with a coefficient of its own."""

    def __init__(self, coef: float = 1.0) -> None:
        super().__init__(coef)


DATA = "{class_path: PromptDataModule, init_args: {train: rows.jsonl}}"
FIRST = """
model:
  class_path: GRPO
  init_args:
    terms: [{class_path: OWN, init_args: {coef: 0.5}}]
data:
  class_path: Mixture
  init_args:
    prompts_per_rollout: 4
    sets:
    - class_path: PromptDataModule
      init_args: {train: first.jsonl, validation: held.jsonl, rewards: [format], chat: {system_prompt: Think.}}
rollout:
  rewards: [{class_path: MathAnswer, init_args: {weight: 0.5, truncated_is_wrong: false}}]
trainer:
  callbacks: [{class_path: ModelCheckpoint, init_args: {monitor: loss}}]
""".replace("OWN", f"{__name__}.Own")
LISTS = {
    "model.init_args.terms": f"[{{class_path: {__name__}.Own}}]",
    "data.init_args.sets": f"[{DATA}]",
    "rollout.rewards": "[{class_path: MathAnswer}]",
    "trainer.callbacks": "[{class_path: ModelCheckpoint}]",
}
"""Option -> a list for it, whose items name the classes of FIRST again."""


@pytest.fixture(scope="module")
def check() -> ConfigCheck:
    return ConfigCheck()


def whole(check: ConfigCheck, arguments: list[str]) -> Any:
    """Return the settings that a command line gives."""
    return check.parser.parse_line(["fit", *find_configs(arguments)]).fit


def parsed(check: ConfigCheck, arguments: list[str], key: str) -> Any:
    """Return an option of the settings that a command line gives."""
    return whole(check, arguments)[key]


def nested(key: str, value: str) -> dict[str, Any]:
    """Return a config with one value, given as YAML, under a dotted name."""
    config = yaml.safe_load(value)
    for name in reversed(key.split(".")):
        config = {name: config}
    return dict(config)


def alone(check: ConfigCheck, folder: Path, key: str) -> Any:
    """Return an option of FIRST with the list of LISTS written in the place of its own."""
    config = yaml.safe_load(FIRST)
    section = config
    *parents, last = key.split(".")
    for name in parents:
        section = section[name]
    section[last] = yaml.safe_load(LISTS[key])
    (folder / "alone.yaml").write_text(yaml.safe_dump(config))
    return parsed(check, ["--config", str(folder / "alone.yaml")], key)


@pytest.mark.parametrize("key", LISTS)
@pytest.mark.parametrize("place", ["config", "base", "option"])
def test_a_list_of_classes_replaces_the_list_before_it(
    check: ConfigCheck, tmp_path: Path, key: str, place: str
) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(FIRST)
    over = nested(key, LISTS[key])
    if place == "base":
        over["base"] = str(first)
    second.write_text(yaml.safe_dump(over))
    arguments = {
        "config": ["--config", str(first), "--config", str(second)],
        "base": ["--config", str(second)],
        "option": ["--config", str(first), f"--{key}", LISTS[key]],
    }[place]
    assert parsed(check, arguments, key) == alone(check, tmp_path, key)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{class_path: ModelCheckpoint, init_args: {monitor: loss}}", "[{class_path: ModelCheckpoint}]"),
        ("[{class_path: ModelCheckpoint, init_args: {monitor: loss}}, RichProgressBar]", "[ModelCheckpoint]"),
    ],
)
def test_a_list_takes_nothing_of_a_class_or_a_list_of_another_length(
    check: ConfigCheck, before: str, after: str
) -> None:
    arguments = ["--model", "GRPO", "--data", "Arithmetic", "--trainer.callbacks", before, "--trainer.callbacks", after]
    callbacks = parsed(check, arguments, "trainer.callbacks")
    assert [item.init_args.monitor for item in callbacks] == [None]


def test_a_part_of_a_list_changes_it_and_a_plus_extends_it(check: ConfigCheck, tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(FIRST)
    first = ["--config", str(tmp_path / "first.yaml")]
    changed = parsed(check, [*first, "--rollout.rewards.weight", "0.25"], "rollout.rewards")
    assert [(item.init_args.weight, item.init_args.truncated_is_wrong) for item in changed] == [(0.25, False)]
    extended = parsed(check, [*first, "--rollout.rewards+", "{class_path: MathAnswer}"], "rollout.rewards")
    assert [item.init_args.weight for item in extended] == [0.5, 1.0]


def test_a_config_without_a_class_replaces_none(check: ConfigCheck, tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(FIRST)
    (tmp_path / "second.yaml").write_text("model: {init_args: {lr: 0.1}}")
    arguments = ["--config", str(tmp_path / "first.yaml"), "--config", str(tmp_path / "second.yaml")]
    assert list(changed_classes(arguments, whole(check, arguments))) == []
    arguments += ["--model", "DAPO"]
    lines = list(changed_classes(arguments, whole(check, arguments)))
    assert lines[0].startswith("model: DAPO instead of GRPO of first.yaml: ")
    assert not any("None" in line for line in lines)


def test_a_mapping_of_a_class_is_still_merged(check: ConfigCheck, tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(FIRST)
    (tmp_path / "second.yaml").write_text("data: {init_args: {prompts_per_rollout: 8}}")
    arguments = ["--config", str(tmp_path / "first.yaml"), "--config", str(tmp_path / "second.yaml")]
    data = parsed(check, arguments, "data.init_args")
    assert data.prompts_per_rollout == 8
    assert [item.init_args.train for item in data.sets] == ["first.jsonl"]
