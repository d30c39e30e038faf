"""TensorBoard: the samples, pictures, settings and results; Lightning's own logger writes the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from lit_rlvr.errors import UserError
from lit_rlvr.run.trackers.base import Samples, TrackedRun, Tracker


class TensorBoard(Tracker):
    """TensorBoard, which every run writes unless `trainer.logger` is false."""

    key = "tensorboard"

    def start(self, run: TrackedRun) -> tuple[str, int]:
        boards = [logger for logger in run.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards:
            raise UserError("trackers: tensorboard is switched off by trainer.logger: false")
        self._writer = boards[0].experiment
        self._writer.add_text("config", _block(run.config_file), 0)
        return "", -1  # a resumed run's event file says itself which steps it replaces

    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        if samples is None:
            return
        lines = ["|".join(samples.columns), "|".join("---" for _ in samples.columns)]
        lines += ["|".join(_escaped_cell(value) for value in row) for row in samples.rows]
        self._writer.add_text("samples", "\n".join(f"|{line}|" for line in lines), step)
        for number, path in enumerate(samples.shown):
            self._writer.add_image(f"samples/picture_{number}", _pixels(path), step, dataformats="HWC")

    def end(self, summary: Mapping[str, Any], curves: Path | None, failed: bool) -> None:
        if summary:
            lines = "\n".join(f"{name}: {value}" for name, value in summary.items())
            self._writer.add_text("summary", _block(lines), int(summary["steps"]))
            if curves is not None:
                self._writer.add_image("curves", _pixels(curves), int(summary["steps"]), dataformats="HWC")
        self._writer.flush()


def _pixels(path: Path) -> np.ndarray:
    """Return a picture as bytes of shape (height, width, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _block(text: str) -> str:
    """Return a text as a Markdown code block."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _escaped_cell(value: Any) -> str:
    """Return a value as a cell of a Markdown table."""
    return "<br>".join(str(value).replace("|", "\\|").splitlines())
