"""Watches a run's metrics: stops a collapsed policy, refuses to monitor unknown metrics."""

from __future__ import annotations

import logging
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.errors import UserError, nearest

_log = logging.getLogger("lit_rlvr")


class CollapseStop(Callback):
    """Stops a collapsed run: compares means over the last `window` iterations with the run's lowest and first means.

    Both signs are those of the negative-dominant control in the A-GRAE paper, where unsolved prompts rise and the
    entropy explodes.

    Args:
        window: number of iterations to average over; 0 = never stop.
        unsolved: stop when the share of prompts without a right completion exceeds its lowest mean by this much.
        entropy: stop when the entropy exceeds this multiple of its mean over the run's first `window` iterations.
    """

    def __init__(self, window: int = 0, unsolved: float = 0.3, entropy: float = 4.0) -> None:
        if window < 0 or not 0 < unsolved <= 1 or entropy <= 1:
            raise UserError(
                f"collapse: window={window} must be >= 0, unsolved={unsolved} in (0, 1], entropy={entropy} above 1"
            )
        self.window, self.unsolved, self.entropy = window, unsolved, entropy
        self.reason: str | None = None
        self._unsolved: list[float] = []  # the last `window` values
        self._entropy: list[float] = []
        self._lowest: float | None = None
        self._first: float | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.window or self.reason is not None:
            return
        metrics = trainer.callback_metrics
        prompts = len(batch.rollout.prompts) * trainer.world_size
        self.reason = self.look(
            float(metrics["rollout/unsolved_prompts"]) / prompts, float(metrics.get("train/entropy", float("nan")))
        )
        if self.reason is not None:
            _log.warning("step %d: stopped, the policy has collapsed: %s", trainer.global_step, self.reason)
            trainer.should_stop = True

    def look(self, unsolved: float, entropy: float) -> str | None:
        """Record one iteration; returns why the run should stop, or None.

        Args:
            unsolved: share of prompts without a right completion. entropy: nats per token; NaN = not measured.
        """
        self._unsolved = [*self._unsolved, unsolved][-self.window :]
        if entropy == entropy:
            self._entropy = [*self._entropy, entropy][-self.window :]
        if len(self._unsolved) == self.window:
            now = fmean(self._unsolved)
            self._lowest = now if self._lowest is None else min(self._lowest, now)
            if now - self._lowest > self.unsolved:
                return f"{now:.2f} of the prompts are unsolved, after {self._lowest:.2f} at best"
        if len(self._entropy) == self.window:
            now = fmean(self._entropy)
            self._first = now if self._first is None else self._first
            if now > self.entropy * self._first:
                return f"the entropy is {now:.2f} nats per token, after {self._first:.2f} at first"
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"unsolved": self._unsolved, "entropy": self._entropy, "lowest": self._lowest, "first": self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._unsolved, self._entropy = state_dict["unsolved"], state_dict["entropy"]
        self._lowest, self._first = state_dict["lowest"], state_dict["first"]


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
