"""A callback that says how even the exchange of groups makes the processes' tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from lit_rlvr.rollout import source
from lit_rlvr.rollout.assemble import balance, group_tokens
from lit_rlvr.types import Rollout


class Moved(Callback):
    """Appends a line per exchange to `moved-RANK`: groups that arrived, and a minibatch's tokens before and after."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.path = Path(trainer.default_root_dir) / f"moved-{trainer.global_rank}"
        source.balance = self.watched  # type: ignore[assignment]

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        source.balance = balance

    def watched(self, before: Rollout, *options: Any) -> Rollout:
        after = balance(before, *options)
        own = [prompt.sample.id for prompt in before.prompts]
        arrived = sum(prompt.sample.id not in own for prompt in after.prompts)
        with self.path.open("a") as file:
            file.write(f"{arrived} {_halves(before)} {_halves(after)}\n")
        return after


def _halves(rollout: Rollout) -> str:
    """Tokens to train on in each of two minibatches."""
    numbers = {p: p for p in range(len(rollout.prompts))} if rollout.kept is None else rollout.kept
    return " ".join(
        str(sum(group_tokens(rollout, p) for p, number in numbers.items() if number % 2 == k and runs(rollout, p)))
        for k in (0, 1)
    )


def runs(rollout: Rollout, p: int) -> bool:
    return bool((rollout.rewards[p] != rollout.rewards[p, 0]).any())
