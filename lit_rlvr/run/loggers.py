"""Makes Lightning's loggers write into the run folder by default."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lit_rlvr.run.logger import MetricsFile


@contextmanager
def save_dir_not_required() -> Iterator[None]:
    """Give the loggers' required `save_dir` a placeholder default while parsing; `in_run_folder` replaces it."""
    classes: tuple[Any, ...] = (CSVLogger, TensorBoardLogger)
    before = [cls.__init__.__defaults__ for cls in classes]
    for cls, others in zip(classes, before, strict=True):
        cls.__init__.__defaults__ = ("", *others)
    try:
        yield
    finally:
        for cls, others in zip(classes, before, strict=True):
            cls.__init__.__defaults__ = others


def in_run_folder(chosen: Any, root: Path) -> None:
    """Set each logger's `save_dir` to the run folder, unless the config set it."""
    for logger in chosen if isinstance(chosen, list) else [chosen]:
        options = logger.get("init_args") if isinstance(logger, Namespace) else None
        if options is not None and "save_dir" in options:
            module, _, name = logger.class_path.rpartition(".")
            default = inspect.signature(getattr(import_module(module), name)).parameters["save_dir"].default
            if str(options.save_dir) in ("", str(default)):
                options.save_dir = str(root)


def with_ours(chosen: Any, root: Path, metrics: MetricsFile, resumed: int | None = None) -> list[Logger]:
    """The loggers of a run: metrics.csv, TensorBoard, and any others configured; False = metrics.csv alone.

    Args:
        resumed: the step of the checkpoint that the run goes on from; TensorBoard then drops later steps.
    """
    given = chosen if isinstance(chosen, list) else [chosen] if isinstance(chosen, Logger) else []
    board = chosen is not False and not any(isinstance(logger, TensorBoardLogger) for logger in given)
    first = None if resumed is None else resumed + 1
    ours = [TensorBoardLogger(root, name="tensorboard", version="", purge_step=first)] if board else []
    return [*ours, *given, metrics]
