"""A step as long as the optimizer's last one, in random directions: what it changes is rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from lit_rlvr.distributed.sharding import own_shard
from lit_rlvr.training.optimizer import all_parameters

BLOCK = 1 << 16
"""Weights that are moved at once; each block of a matrix gets the same signs."""


class RandomStep:
    """Moves each weight as far as the optimizer's last step did, up or down at random, and back.

    The divergence of such a step is that of rounding. It has little of the real step's, because its parts cancel in a
    sum over all weights: 7 % on average in a tiny model (research/learning_rate.md).

    It needs no more memory than the gradients, which are free by then. Only for an optimizer other than Adam and AdamW,
    whose moments say how far a step went, it also keeps a copy of the weights from before the step.

    Args:
        optimizer: before its step.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.before: list[Tensor] = []
        if not isinstance(optimizer, Adam):  # AdamW is one, too
            self.before = [own_shard(parameter).detach().clone() for parameter in all_parameters(optimizer)]

    @contextmanager
    def taken(self, seed: int) -> Iterator[None]:
        """Take the random step within this context; afterwards the weights are exactly what they were.

        Args:
            seed: of the signs.
        """
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (BLOCK,), generator=generator).float() * 2 - 1  # on the CPU: the same everywhere
        weights = []
        for parameter in all_parameters(self.optimizer):
            weights.append(own_shard(parameter).detach())
        kept = []
        for weight, step in zip(weights, self._last_step(weights), strict=True):
            kept.append(weight.clone())
            signs = signs.to(weight.device)
            for block, of_block in zip(weight.view(-1).split(BLOCK), step.reshape(-1).split(BLOCK), strict=True):
                block.add_(of_block * signs[: len(block)])
        try:
            yield
        finally:
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)

    def _last_step(self, weights: list[Tensor]) -> Iterator[Tensor]:
        """Yield how far each weight was moved, up to its sign."""
        if self.before:
            for weight, before in zip(weights, self.before, strict=True):
                yield weight - before
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                yield adam_step(self.optimizer.state.get(parameter, {}), group, own_shard(parameter))


def adam_step(state: dict[str, Any], group: dict[str, Any], weight: Tensor) -> Tensor:
    """Return how far Adam's last step moved this rank's shard of a weight, without the decay.

    Args:
        state: the optimizer's, of the weight; empty = it has never been moved.
        group: the options of the weight's group.
        weight: this rank's shard.
    """
    if not state:
        return torch.zeros_like(weight)
    count = own_shard(state["step"])
    slow, fast = group["betas"]
    mean = own_shard(state["exp_avg"]) / (1 - slow**count)
    square = own_shard(state["exp_avg_sq"]) / (1 - fast**count)
    return group["lr"] * mean / (square.sqrt() + group["eps"])
