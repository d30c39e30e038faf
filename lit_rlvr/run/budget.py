"""Ends training after a number of generated completions or tokens, however the algorithm uses them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.errors import UserError


class Budget(Callback):
    """Ends training with the iteration that uses up a number of completions or tokens.

    Everything generated for training counts, including further rounds of dynamic sampling and a reference model's
    completions; validation does not. `trainer.max_steps` counts optimizer steps; the first limit reached ends the run.

    Args:
        samples: sampled completions; None = no limit.
        tokens: generated tokens; None = no limit.
    """

    def __init__(self, samples: int | None = None, tokens: int | None = None) -> None:
        self.limits = {name: limit for name, limit in (("samples", samples), ("tokens", tokens)) if limit is not None}
        for name, limit in self.limits.items():
            if limit < 1:
                raise UserError(f"budget.{name}: {limit} is not positive")
        self.used = dict.fromkeys(("samples", "tokens"), 0)
        self._iterations = 0

    @property
    def iterations(self) -> int | None:
        """Iterations until it is used up, if it goes on as so far; None without a limit, or before it is used."""
        done = self._iterations
        found = [-(-done * limit // self.used[name]) for name, limit in self.limits.items() if self.used[name]]
        return max(min(found), done) if found else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name in self.used:
            self.used[name] += int(trainer.callback_metrics[f"rollout/{name}"])
        self._iterations += 1
        self._stop_if_used_up(trainer)

    def _stop_if_used_up(self, trainer: Trainer) -> None:
        if any(self.used[name] >= limit for name, limit in self.limits.items()):
            trainer.should_stop = True  # Lightning then validates before it ends the run

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["budget"] = self.used

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.used, self._iterations = checkpoint["budget"], checkpoint["rlvr"]["iteration"]
        self._stop_if_used_up(trainer)
