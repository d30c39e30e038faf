"""The frozen reference policy, for a KL term and for completions that an advantage compares with."""

from __future__ import annotations

from typing import Any

import torch

from lit_rlvr.distributed.sharding import load_weights, weights_to_save
from lit_rlvr.policy.policy import Policy


class Reference:
    """Holds the initial policy if something needs it; it may be replaced by the current one.

    It is not a module, so that Lightning neither saves nor shards it with the trained policy.

    Args:
        update_every: `model.kl.reference_update_every`.

    Attributes:
        policy: the reference policy; None if neither a KL term nor the advantage needs one.
        version: how many times it was replaced.
    """

    def __init__(self, update_every: int | None = None) -> None:
        self.update_every = update_every
        self.policy: Policy = None  # type: ignore[assignment]  # built in configure_model
        self.version = 0

    def move(self, device: torch.device) -> None:
        """Move the weights to the training device."""
        if self.policy is not None:
            self.policy.to(device)

    def renew(self, policy: Policy, iteration: int) -> None:
        """Copy the weights of the current policy after every `update_every`-th iteration."""
        if self.policy is not None and self.update_every and iteration % self.update_every == 0:
            self.policy.load_state_dict(policy.state_dict())
            self.version += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores: the weights (of sharded ones this rank's shards) only if they were replaced.
        Collective: call it on every rank."""
        return {"version": self.version, "weights": weights_to_save(self.policy) if self.version else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.version = state["version"]
        if state["weights"] is not None:
            load_weights(self.policy, state["weights"])
