"""Flattens settings to names and texts, so that runs can be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

Settings = dict[str, str]
"""Name -> value as text; `model` is the class, `model.lr` is one of its options."""

PER_RUN = ("seed_everything", "trainer.default_root_dir", "overwrite")
"""Settings that may differ between runs shown together."""

MAIN = (
    "model", "model.model", "model.advantage", "model.lr", "data", "data.train", "data.prompts_per_step",
    "rollout.rewards", "rollout.group_size", "rollout.sampling.max_tokens", "rollout.sampling.temperature",
    "rollout.engine", "trainer.max_steps", "trainer.precision",
)  # fmt: skip
"""The settings that a reader looks for first."""

MISSING = "\N{EN DASH}"


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """A config's settings.

    `{class_path, init_args}` becomes the class under the name itself and its options under `name.option`; the items of
    a list of mappings are numbered.
    """
    if isinstance(value, dict) and "class_path" in value:
        yield name, str(value["class_path"]).rpartition(".")[2]
        value = value.get("init_args") or {}
        yield from (pair for key in value for pair in flatten(value[key], f"{name}.{key}"))
    elif isinstance(value, dict) and value:
        yield from (pair for key in value for pair in flatten(value[key], f"{name}.{key}" if name else str(key)))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield from (pair for i, item in enumerate(value) for pair in flatten(item, f"{name}[{i}]"))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def without_seed(settings: Settings) -> Settings:
    """The settings that the runs of a group share."""
    return {name: value for name, value in settings.items() if name not in PER_RUN}


def differences(groups: Sequence[Settings]) -> list[tuple[str, list[str]]]:
    """The settings that differ between groups, with their value in each; those that every group has come first."""
    names = dict.fromkeys(name for settings in groups for name in without_seed(settings))
    rows = [(name, [settings.get(name, MISSING) for settings in groups]) for name in names]
    return sorted(((name, values) for name, values in rows if len(set(values)) > 1), key=lambda row: MISSING in row[1])


def main_settings(groups: Sequence[Settings]) -> list[tuple[str, str]]:
    """The main settings that all groups share."""
    listed = {name: re.sub(r"\[\d+\]$", "", name) for settings in groups for name in settings}  # without their number
    names = sorted((name for name in listed if listed[name] in MAIN), key=lambda name: MAIN.index(listed[name]))
    shared = [(name, {settings.get(name, MISSING) for settings in groups}) for name in names]
    return [(name, values.pop()) for name, values in shared if len(values) == 1]
