"""The frozen reference policy, for a KL term and for AAPO's reference completions."""

from __future__ import annotations

from typing import Any, Literal

from lit_rlvr.distributed.collectives import rank
from lit_rlvr.distributed.sharding import load_whole_weights, shard, whole_weights
from lit_rlvr.distributed.strategy import FSDP2
from lit_rlvr.errors import UserError
from lit_rlvr.policy.adapters import Lora
from lit_rlvr.policy.load_policy import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import compute_dtype
from lit_rlvr.policy.verify import verify_or_fall_back
from lit_rlvr.training.loss import LossModule


class ReferenceModule(LossModule):
    """Holds the initial policy if something needs it, and updates it if requested (AAPO, section 6.3).

    AAPO exposes these attributes as options; another algorithm with AAPO's advantage uses these values.
    """

    reference_rollouts: Literal["fresh", "pool"] = "fresh"
    reference_pool_size: int | None = None
    reference_update_every: int | None = None
    lora: Lora | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reference_version = 0  # how many times the reference was updated
        self._reference: list[Policy] = []  # in a list, so that it is neither saved nor sharded with the module

    @property
    def reference(self) -> Policy:
        """The reference policy; it exists only if a KL term or the advantage needs it."""
        return self._reference[0]

    def load_reference(self, shared_prefix: bool) -> None:
        """Make the initial policy the reference, if one is needed: a second copy, or the policy without its adapters.

        Raises:
            UserError: the reference should be updated, which is not possible with adapters.
        """
        if self.kl_coef == 0 and not self.advantage.needs_reference:
            return
        if self.lora is None:
            initial = load_policy(self.model_folder, shared_prefix, empty=self.starts_empty).requires_grad_(False)
            self.distribute(initial)
            self._reference = [initial]
        elif self.reference_update_every:
            raise UserError("model.reference_update_every: with model.lora the reference is the model without adapters")
        else:
            self._reference = [self.policy.without_adapters()]

    @property
    def sharded(self) -> bool:
        """Whether the weights are sharded over the processes."""
        return self.device_mesh is not None

    @property
    def starts_empty(self) -> bool:
        """Whether the first process loads the weights and this one gets its shards from `distribute`."""
        return self.sharded and rank() > 0

    def distribute(self, policy: Policy) -> None:
        """Shard and check a policy's weights if the strategy shards. Collective: call it on every rank."""
        if not self.sharded:
            return
        strategy = self.trainer.strategy
        if not isinstance(strategy, FSDP2):
            raise UserError("trainer.strategy: to shard weights use lit_rlvr.strategy.FSDP2: --config strategy/fsdp2")
        assert strategy.sharding_mesh is not None
        policy.share_prefix(strategy.broadcast(policy.shared_prefix))
        dtype = compute_dtype(str(self.trainer.precision))
        shard(policy, strategy.sharding_mesh, ["plain_logits"], dtype, strategy.offload)
        verify_or_fall_back(policy, dtype)

    def on_fit_start(self) -> None:
        for reference in self._reference if not self.sharded else ():  # `distribute` has placed sharded ones
            reference.to(self.device)

    def renew_reference(self, iteration: int) -> None:
        """Make the current policy the reference, every `reference_update_every` iterations."""
        if self._reference and self.reference_update_every and iteration % self.reference_update_every == 0:
            self.reference.load_state_dict(self.policy.state_dict())
            self.reference_version += 1

    def reference_state(self) -> dict[str, Any]:
        """What a checkpoint stores of the reference: its weights only if it was updated."""
        weights = whole_weights(self.reference) if self.reference_version else None
        return {"version": self.reference_version, "weights": weights}

    def load_reference_state(self, state: dict[str, Any]) -> None:
        self.reference_version = state["version"]
        if state["weights"] is not None:
            load_whole_weights(self.reference, state["weights"])
