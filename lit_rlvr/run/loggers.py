"""The loggers of a run: `metrics.csv`, which stays exact across resumes, and Lightning's in the run folder."""

from __future__ import annotations

import csv
import inspect
import io
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.run_files import read_metrics
from lit_rlvr.distributed.checkpoints import checkpoint_step


class MetricsFile(Logger):
    """A logger that writes every metric to one CSV file; NaN means no value and leaves the cell empty.

    Lightning's CSVLogger starts a new file on every run; this one appends. A resumed run first drops the rows after its
    checkpoint, so that the file equals that of an uninterrupted run.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, float]] = {}  # the metrics logged so far, by step
        self._pending = False

    @property
    def name(self) -> str:
        return ""

    version = name

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def resume(self, last_step: int) -> None:
        """Read the rows that an earlier run wrote, up to and including `last_step`."""
        if self.path.is_file():
            self.rows = {step: row for step, row in read_metrics(self.path).items() if step <= last_step}

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the resolved settings are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        new = {}
        for name, value in metrics.items():
            if not math.isnan(value):
                new[name] = float(value)
        key = int(step or 0)
        row = self.rows.get(key, {}) | new
        self._pending |= self.rows.get(key) != row
        self.rows[key] = row

    @rank_zero_only
    def save(self) -> None:
        """Rewrite the file atomically."""
        if not self._pending:
            return
        names = sorted(set(chain.from_iterable(self.rows.values())))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["step", *names], restval="")
        writer.writeheader()
        writer.writerows({"step": step, **self.rows[step]} for step in sorted(self.rows))
        write_atomically(self.path, text.getvalue())
        self._pending = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


_C = TypeVar("_C", bound=Callback)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the callbacks, which Lightning's Trainer does not declare."""
    return trainer.callbacks  # type: ignore[attr-defined]


def callback_of(trainer: Trainer, kind: type[_C]) -> _C:
    """Return the callback of a kind of which every run has one."""
    return next(callback for callback in callbacks_of(trainer) if isinstance(callback, kind))


def run_root(trainer: Trainer) -> Path:
    """Return the run folder."""
    return Path(trainer.default_root_dir)


def metrics_file(trainer: Trainer) -> MetricsFile | None:
    """Return the trainer's metrics.csv; None if it has none."""
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            return logger
    return None


def metric_rows(trainer: Trainer) -> Mapping[int, Mapping[str, float]]:
    """Return the rows of metrics.csv by step; only rank 0 has them."""
    metrics = metrics_file(trainer)
    if metrics is None:
        return {}
    return metrics.rows


@contextmanager
def save_dir_not_required() -> Iterator[None]:
    """Give the loggers' required `save_dir` a placeholder default during parsing; `set_save_dir` replaces it."""
    classes: tuple[Any, ...] = (CSVLogger, TensorBoardLogger)
    before = [cls.__init__.__defaults__ for cls in classes]
    for cls, others in zip(classes, before, strict=True):
        cls.__init__.__defaults__ = ("", *others)
    try:
        yield
    finally:
        for cls, others in zip(classes, before, strict=True):
            cls.__init__.__defaults__ = others


def set_save_dir(chosen: Any, root: Path) -> None:
    """Set each logger's `save_dir` to the run folder, unless the config set it."""
    for logger in chosen if isinstance(chosen, list) else [chosen]:
        if isinstance(logger, jsonargparse.Namespace):
            options = logger.get("init_args")
        else:
            options = None
        if options is not None and "save_dir" in options:
            module, _, name = logger.class_path.rpartition(".")
            default = inspect.signature(getattr(import_module(module), name)).parameters["save_dir"].default
            if str(options.save_dir) in ("", str(default)):
                options.save_dir = str(root)


def open_loggers(chosen: Any, root: Path, checkpoint: str | Path | None) -> list[Logger]:
    """Return the loggers of a run: metrics.csv, TensorBoard, and further configured ones.

    Args:
        chosen: the configured loggers; False = metrics.csv alone.
        root: the run folder.
        checkpoint: the checkpoint that the run resumes from: metrics.csv continues after its step, and TensorBoard
            drops later steps; None = a new run.
    """
    metrics = MetricsFile(root / "metrics.csv")
    purge_step = None
    if checkpoint is not None:
        step = checkpoint_step(str(checkpoint))
        metrics.resume(step)
        purge_step = step + 1
    if isinstance(chosen, list):
        given = chosen
    elif isinstance(chosen, Logger):
        given = [chosen]
    else:
        given = []
    if chosen is False or any(isinstance(logger, TensorBoardLogger) for logger in given):
        return [*given, metrics]
    return [TensorBoardLogger(root, name="tensorboard", version="", purge_step=purge_step), *given, metrics]
