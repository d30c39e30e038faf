"""The rows that `check --data` names: a config's data, a DataModule with a file, or a file alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple, get_args

from lit_rlvr import datamodules
from lit_rlvr.commands.check.parity import build_object
from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.configs import find_config, import_classes, load_config, load_yaml
from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.reading.readers import FORMATS
from lit_rlvr.datamodules.reading.split import Split
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.suites import read_suite, suite_from_columns
from lit_rlvr.policy.sources import ModelSource
from lit_rlvr.types import Sample

import_classes(datamodules)


def read_set(argument: str, rows: int, seed: int) -> list[Sample]:
    """Draw rows of a set by seed. Rows with images of a config are as its model sees them.

    Args:
        argument: a file; a DataModule, with `=FILE` unless it makes its own rows; or a config, by name or path.
        rows: how many rows to draw.
        seed: the seed of the draw.

    Raises:
        UserError: there is no such set, or it has no row.
    """
    check_within("[1, inf)", "check", rows=rows)
    named = find_set(argument)
    data = build_object(named.data, f"--data {argument}", PromptDataModule)
    split = next((split for split in get_args(Split) if data.locations[split]), "train")
    samples: list[Sample] = list(data.load(split))
    if not samples:
        raise UserError(f"--data: {argument} has no row")
    random.Random(derive_seed("check", seed)).shuffle(samples)
    drawn = samples[:rows]
    if named.model is None or not any(sample.images for sample in drawn):
        return drawn
    data.use_model(ModelSource(named.model))
    return [data.encode(sample).sample for sample in drawn]


class NamedSet(NamedTuple):
    """A set that `--data` names.

    Args:
        data: `class_path` and `init_args` of its DataModule.
        model: the model of the config that it stands in; None = there is none.
    """

    data: dict[str, Any]
    model: str | None = None


def find_set(argument: str) -> NamedSet:
    """Return the set that an argument names."""
    name, _, location = argument.partition("=")
    if location:
        return NamedSet({"class_path": name, "init_args": {"train": location}})
    is_file = Path(name).suffix in FORMATS or (Path(name).exists() and Path(name).suffix != ".yaml")
    if is_file or name.startswith("package:"):
        return NamedSet(dict(suite_from_columns(name, Path(name).stem, option="--data")["data"]))
    if name in datamodules.__all__ or ("." in name and "/" not in name and not name.endswith(".yaml")):
        return NamedSet({"class_path": name})
    path = find_config(name, "--data")
    if "rewards" in (load_yaml(path.read_text()) or {}):
        read = read_suite
    else:
        read = load_config
    config = read(path)
    data = config.get("data")
    if not isinstance(data, dict):
        raise UserError(f"--data: {path} has no `data` with a class_path; give a config of `fit`, a suite or a file")
    model = config.get("model")
    options = model.get("init_args") if isinstance(model, dict) else None
    return NamedSet(data, (options or {}).get("model"))
