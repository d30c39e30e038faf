"""A callback that says how many groups the exchange moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from lit_rlvr.rollout import source
from lit_rlvr.rollout.balance import balance
from lit_rlvr.types import Rollout


class Moved(Callback):
    """Appends a line per exchange to `moved-RANK`: the number of groups that arrived."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.path = Path(trainer.default_root_dir) / f"moved-{trainer.global_rank}"
        source.balance = self.watched  # type: ignore[assignment]

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        source.balance = balance

    def watched(self, before: Rollout, *options: Any) -> Rollout:
        after = balance(before, *options)
        own = [prompt.sample.id for prompt in before.prompts]
        with self.path.open("a") as file:
            file.write(f"{sum(prompt.sample.id not in own for prompt in after.prompts)}\n")
        return after
