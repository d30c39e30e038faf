"""The rows that `check --data` names: a config's data, a DataModule with a file, or a file alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, get_args

from lit_rlvr import datamodules
from lit_rlvr.commands.check.parity import build_object
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.configs import find_config, import_classes, load_config, load_yaml
from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.base import Split
from lit_rlvr.datamodules.reading.readers import FORMATS
from lit_rlvr.errors import UserError, check_within
from lit_rlvr.evaluation.suites import read_suite, suite_from_columns
from lit_rlvr.types import Sample

import_classes(datamodules)


def read_set(argument: str, rows: int, seed: int) -> list[Sample]:
    """Draw rows of a set by seed.

    Args:
        argument: a file; a DataModule, with `=FILE` unless it makes its own rows; or a config, by name or path.
        rows: how many rows to draw.
        seed: the seed of the draw.

    Raises:
        UserError: there is no such set, or it has no row.
    """
    check_within("[1, inf)", "check", rows=rows)
    data = build_object(data_config(argument), f"--data {argument}", PromptDataModule)
    split = next((split for split in get_args(Split) if data.locations[split]), "train")
    samples: list[Sample] = list(data.load(split))
    if not samples:
        raise UserError(f"--data: {argument} has no row")
    random.Random(derive_seed("check", seed)).shuffle(samples)
    return samples[:rows]


def data_config(argument: str) -> dict[str, Any]:
    """Return `class_path` and `init_args` of the DataModule that an argument names."""
    name, _, location = argument.partition("=")
    if location:
        return {"class_path": name, "init_args": {"train": location}}
    is_file = Path(name).suffix in FORMATS or (Path(name).exists() and Path(name).suffix != ".yaml")
    if is_file or name.startswith("package:"):
        return dict(suite_from_columns(name, Path(name).stem, option="--data")["data"])
    if name in datamodules.__all__ or ("." in name and "/" not in name and not name.endswith(".yaml")):
        return {"class_path": name}
    path = find_config(name, "--data")
    if "rewards" in (load_yaml(path.read_text()) or {}):
        read = read_suite
    else:
        read = load_config
    data = read(path).get("data")
    if not isinstance(data, dict):
        raise UserError(f"--data: {path} has no `data` with a class_path; give a config of `fit`, a suite or a file")
    return data
