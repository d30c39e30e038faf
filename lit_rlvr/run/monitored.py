"""Refuses a callback that monitors an unknown metric, early and with a list of the known ones."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.errors import UserError, nearest


class MonitoredMetrics(Callback):
    """Checks every callback's `monitor` after the first iteration, when all metrics have been logged once."""

    def __init__(self) -> None:
        self._looked = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._looked:
            return
        self._looked = True
        validated: dict[str, float] = pl_module.validation_results  # type: ignore[assignment]
        found = {*trainer.callback_metrics, *validated, "step", "epoch"}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            name = getattr(callback, "monitor", None)
            unknown = isinstance(name, str) and name not in found and getattr(callback, "strict", True)
            measured_later = str(name).startswith("val/") and not validated and bool(trainer.val_dataloaders)
            if unknown and not measured_later:
                near = nearest(str(name), found)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise UserError(
                    f"trainer.callbacks: {type(callback).__name__} monitors {name!r}, which this run does not log; "
                    f"{hint}it logs {', '.join(sorted(found))}"
                )
