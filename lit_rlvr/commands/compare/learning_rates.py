"""The best learning rate of each family: cells whose configs differ in the learning rate alone."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from itertools import takewhile
from math import isnan
from typing import Any

from lit_rlvr.commands.compare.study import Study, algorithm_options, learning_rate


def families(study: Study, task: str) -> dict[str, dict[str, float]]:
    """Return family -> {cell: learning rate}, by rate, of the families with at least two rates."""
    groups: dict[str, dict[str, float]] = {}
    for cell in study.cells:
        rate = _or_default(learning_rate(cell.config))
        if cell.task == task and cell.seed == study.seeds[0] and not isnan(rate):
            groups.setdefault(_without_rate(cell.config), {})[cell.name] = rate
    several = [group for group in groups.values() if len(set(group.values())) > 1]
    names = [_shared_name(list(group)) for group in several]
    return {
        name if names.count(name) == 1 else ", ".join(group): dict(sorted(group.items(), key=lambda item: item[1]))
        for name, group in zip(names, several, strict=True)
    }


def best_rates(study: Study, task: str, cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return, for each family of a task, its values at each rate, its best cell, and its cell at the base's own rate.

    The best cell has the largest mean, and the smallest rate of equal ones. The base's rate is the one of the configs
    under the cells.

    Args:
        cells: the task's cells in results.json.
    """
    base_rates = {cell.name: _or_default(cell.base_rate) for cell in study.cells if cell.task == task}
    found = {}
    for family, rates in families(study, task).items():
        values = {name: {key: cells[name][key] for key in ("mean", "std", "n")} for name in rates}
        measured = [name for name in rates if values[name]["mean"] is not None]
        best = max(measured, key=lambda name: values[name]["mean"], default=None)
        base = next((name for name, rate in rates.items() if rate == base_rates[name]), None)
        found[family] = {
            "cells": {name: {"lr": rate, **values[name]} for name, rate in rates.items()},
            "best": best,
            "best_lr": None if best is None else rates[best],
            "base": base,
            "base_lr": base_rates[next(iter(rates))],
        }
    return found


def _without_rate(config: Mapping[str, Any]) -> str:
    """Return a config without its learning rate as text."""
    model = config.get("model")
    options = {key: value for key, value in algorithm_options(config).items() if key != "lr"}
    kept = {**(model if isinstance(model, dict) else {"class_path": model}), "init_args": options}
    return json.dumps({**config, "model": kept}, sort_keys=True, default=str)


def _or_default(rate: float | None) -> float:
    """Return a learning rate, or the default of all algorithms."""
    if rate is not None:
        return rate
    from lit_rlvr.training.module import RLVRModule

    return inspect.signature(RLVRModule.__init__).parameters["lr"].default


def _shared_name(names: list[str]) -> str:
    """Return the first words that the names of cells share (grpo_low, grpo_high -> grpo), or else all names."""
    words = zip(*(re.split("[_.+-]", name) for name in names), strict=False)
    shared = [word[0] for word in takewhile(lambda word: len(set(word)) == 1, words)]
    return names[0][: len("_".join(shared))] or ", ".join(names)
