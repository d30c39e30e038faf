"""A policy that is not trained: the reference of a KL term or an advantage, or a teacher."""

from __future__ import annotations

from typing import Any

import torch

from lit_rlvr.distributed.sharding import load_weights, weights_to_save
from lit_rlvr.policy.policy import Policy


class Reference:
    """Holds the initial policy if something needs it; it may be replaced by the current one, or go towards it.

    It is not a module, so that Lightning neither saves nor shards it with the trained policy.

    Args:
        update_every: iterations after which it is renewed; None = never.
        ema: fraction of the way to the current weights that a renewal moves it; 1 = copy them.

    Attributes:
        policy: the policy; None if nothing needs it.
        version: how many times it was renewed.
    """

    def __init__(self, update_every: int | None = None, ema: float = 1.0) -> None:
        self.update_every = update_every
        self.ema = ema
        self.policy: Policy = None  # type: ignore[assignment]  # built in configure_model
        self.version = 0

    def move(self, device: torch.device) -> None:
        """Move the weights to the training device."""
        if self.policy is not None:
            self.policy.to(device)

    def renew(self, policy: Policy, iteration: int) -> None:
        """Copy the policy's weights after every `update_every`-th iteration, or average them with its own."""
        if self.policy is None or not self.update_every or iteration % self.update_every:
            return
        if self.ema == 1:
            self.policy.load_state_dict(policy.state_dict())
        else:
            with torch.no_grad():
                for average, current in zip(self.policy.parameters(), policy.parameters(), strict=True):
                    average.mul_(1 - self.ema).add_(current, alpha=self.ema)
        self.version += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores: the weights (of sharded ones this rank's shards) only if they were replaced.

        Collective: call it on every rank.
        """
        return {"version": self.version, "weights": weights_to_save(self.policy) if self.version else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, unless nothing needs it any more."""
        self.version = state["version"]
        if state["weights"] is not None and self.policy is not None:
            load_weights(self.policy, state["weights"])
