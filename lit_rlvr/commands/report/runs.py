"""Run folders: reads them as far as possible, so that a report can show a broken or unfinished run; compares
settings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from lit_rlvr.common.run_files import read_metrics
from lit_rlvr.errors import UserError

RunSettings = dict[str, str]
"""Name -> value as text; `model` is the class, `model.lr` is one of its options."""

PER_RUN = ("seed_everything", "trainer.default_root_dir", "overwrite")
"""Settings that may differ between the runs of a group."""

MAIN = (
    "model", "model.model", "model.advantage", "model.lr", "data", "data.train", "data.prompts_per_rollout",
    "rollout.rewards", "rollout.group_size", "rollout.sampling.max_tokens", "rollout.sampling.temperature",
    "rollout.engine", "trainer.max_steps", "trainer.precision",
)  # fmt: skip
"""The settings that a reader looks for first."""

MISSING = "\N{EN DASH}"


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield a config's settings.

    `{class_path, init_args}` becomes the class under the name itself and its options under `name.option`; the items of
    a list of mappings are numbered.
    """
    if isinstance(value, dict) and "class_path" in value:
        yield name, str(value["class_path"]).rpartition(".")[2]
        value = value.get("init_args") or {}
        for key in value:
            for pair in flatten(value[key], f"{name}.{key}"):
                yield pair
    elif isinstance(value, dict) and value:
        for key in value:
            for pair in flatten(value[key], f"{name}.{key}" if name else str(key)):
                yield pair
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            for pair in flatten(item, f"{name}[{i}]"):
                yield pair
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def without_seed(settings: RunSettings) -> RunSettings:
    """Return the settings that the runs of a group share."""
    own = {}
    for name, value in settings.items():
        if name not in PER_RUN:
            own[name] = value
    return own


def differences(groups: Sequence[RunSettings]) -> list[tuple[str, list[str]]]:
    """Return the settings that differ between groups, with their value in each.

    Settings that every group has come first.
    """
    rows = []
    for name in dict.fromkeys(chain(*map(without_seed, groups))):
        values = []
        for settings in groups:
            values.append(settings.get(name, MISSING))
        if len(set(values)) > 1:
            rows.append((name, values))
    return sorted(rows, key=lambda row: MISSING in row[1])


def main_settings(groups: Sequence[RunSettings]) -> list[tuple[str, str]]:
    """Return the main settings that all groups share."""
    listed = {name: re.sub(r"\[\d+\]$", "", name) for settings in groups for name in settings}  # without their number
    names = sorted((name for name in listed if listed[name] in MAIN), key=lambda name: MAIN.index(listed[name]))
    shared = []
    for name in names:
        values = set()
        for settings in groups:
            values.add(settings.get(name, MISSING))
        if len(values) == 1:
            shared.append((name, values.pop()))
    return shared


@dataclass
class RunRecord:
    """The contents of a run folder.

    Args:
        path: the folder.
        config: the text of config.yaml.
        settings: its settings, flattened.
        metrics: {step: {metric: finite value}}.
        summary: summary.json; empty while the run is going, or if it was killed.
        notes: missing or unreadable files.
    """

    path: Path
    config: str = ""
    settings: RunSettings = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Note a file that is missing or cannot be read; an unfinished run has no summary."""
        try:
            yield
        except FileNotFoundError:
            if name != "summary.json":
                self.notes.append(f"there is no {name}")
        except (OSError, ValueError, yaml.YAMLError, UserError) as error:
            self.notes.append(f"{name} cannot be read: {' '.join(str(error).split())}")

    @property
    def seed(self) -> str:
        """The seed of the run, "?" if its settings name none."""
        return self.settings.get("seed_everything", "?")

    @property
    def is_finished(self) -> bool:
        """True if the run has a summary and did not stop early."""
        return bool(self.summary) and self.summary.get("stopped") is None

    @property
    def ending(self) -> str:
        """The reason why the run is unfinished; "" if it finished."""
        steps = max(self.metrics, default=0)
        if not self.summary:
            return f"unfinished, or killed: it has no summary; its metrics reach step {steps}"
        stopped = self.summary.get("stopped")
        if stopped is None:
            return ""
        return f"stopped early, at step {steps}: {stopped}"

    def number(self, name: str) -> float | None:
        """Return a number from the summary; None if it is missing."""
        return _finite_number(self.summary.get(name))

    @property
    def seconds_per_iteration(self) -> float | None:
        """The median duration of an iteration: a rollout and its updates."""
        return _finite_number((self.summary.get("seconds_per_step") or {}).get("step"))

    def ends(self, metric: str) -> tuple[float | None, float | None]:
        """Return a metric at step 0, before training, and at its last logged step after that.

        None if it was not logged.
        """
        later = []
        for step, row in sorted(self.metrics.items()):
            if step > 0 and metric in row:
                later.append(row[metric])
        return self.metrics.get(0, {}).get(metric), later[-1] if later else None

    @property
    def accuracies(self) -> tuple[float | None, float | None]:
        """Validation accuracy before and after training; None after training for an unfinished run."""
        before = self.number("accuracy_before")
        return self.ends("val/accuracy")[0] if before is None else before, self.number("accuracy_after")


FILES = ("config.yaml", "metrics.csv", "summary.json")


def read_run(path: Path) -> RunRecord:
    """Read a run folder, except completions.jsonl (`commands/report/prompts.py`), which can be large.

    Raises:
        UserError: it holds no run.
    """
    if not any((path / name).is_file() for name in FILES):
        raise UserError(f"{path} holds no run ({', '.join(FILES)}); give a folder that `lit-rlvr fit` wrote")
    run = RunRecord(path)
    with run.noting("config.yaml"):
        text = (path / "config.yaml").read_text(encoding="utf-8", errors="replace")
        run.config = text
        run.settings = dict(flatten(yaml.safe_load(text)))
    with run.noting("metrics.csv"):
        for step, row in read_metrics(path / "metrics.csv").items():
            run.metrics[step] = {name: value for name, value in row.items() if math.isfinite(value)}
    with run.noting("summary.json"):
        run.summary = json.loads((path / "summary.json").read_text(encoding="utf-8", errors="replace"))
    return run


def metric_names(runs: Iterable[RunRecord]) -> list[str]:
    """Return every logged metric, with numbers in names sorted by value: pass@2 before pass@16."""
    names: set[str] = set()
    for run in runs:
        names.update(*run.metrics.values())
    return sorted(names, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"([0-9]+)", name)])


def _finite_number(value: Any) -> float | None:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None
