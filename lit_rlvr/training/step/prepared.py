"""A rollout with what its updates need."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lit_rlvr.options import Importance
from lit_rlvr.training.trace import Trace
from lit_rlvr.types import Rollout


@dataclass
class PreparedRollout:
    """A rollout and what its updates need, computed once before the first update, for this rank's B rows.

    Args:
        rollout: the rollout of this rank.
        advantages: (B, 1) or (B, T).
        live: rows that can have a gradient.
        importance: `model.importance` of the run, with a correction chosen.
        age: (B, T) optimizer steps between the weights that sampled each token and those of the first update.
        trace: records what the updates do with its tokens; None = nothing does.
        staleness: the metrics of the tokens' ages, logged with the first step; {} if no token so far was old.
        old_logp: (B, T) log-probabilities at the beginning of the iteration, for the steps after the first, which
            fills in its own rows. None = there is no later step, or these are estimated (`loglinear_old`).
        steps_taken: optimizer steps taken on it so far.
        ref_logp: (B, T) log-probabilities under the reference policy; None unless the loss or a term in it needs it.
        entropy: (B, T) of the policy at the beginning of the iteration; None unless tokens are chosen by it, or a term
            in the rewards or advantages needs it.
    """

    rollout: Rollout
    advantages: Tensor
    live: list[int]
    importance: Importance
    age: Tensor
    trace: Trace | None = None
    staleness: dict[str, float] = field(default_factory=dict)
    old_logp: Tensor | None = None
    steps_taken: int = 0
    ref_logp: Tensor | None = None
    entropy: Tensor | None = None

    @property
    def logs_correction(self) -> bool:
        """Whether the weights of the importance correction are logged: if some token is old, or one was before."""
        return bool(self.staleness)

    @property
    def is_first_step(self) -> bool:
        """True if no step was taken or skipped yet, so that the weights are those of the iteration's beginning."""
        return self.steps_taken == 0

    def keep_old_logprobs(self, index: Tensor, logp: Tensor) -> None:
        """Keep rows of the first step, whose weights are those of the iteration's beginning, for later steps.

        Args:
            index: (rows,) long.
            logp: (rows, T).
        """
        if self.is_first_step and self.old_logp is not None:
            self.old_logp[index] = logp.to(self.old_logp.dtype)
