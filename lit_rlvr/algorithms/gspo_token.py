"""GSPO-token: the ratio of a sequence, with a gradient and an advantage for each of its tokens."""

from __future__ import annotations

from torch import Tensor

from lit_rlvr.algorithms.gspo import GSPO
from lit_rlvr.objectives import LossInputs, Stats, clipped_surrogate, log_ratio, masked_mean, masked_sum


class GSPOToken(GSPO):
    """`-(1/B) sum_i (1/n_i) sum_t min(u A_t, clip(u, 1 - clip_low, 1 + clip_high) A_t)`, `u = sg[s] p / sg[p]`.

    s is GSPO's ratio of the sequence, p the probability of the token, and sg stops the gradient. With one advantage for
    each completion, loss and gradient are GSPO's. It takes one for each token as well.

    Source: Zheng et al. 2025 (GSPO, arXiv 2507.18071), section 4.3, eqs. 13-14.

    Example:
        ```yaml
        model: {class_path: GSPOToken, init_args: {clip_low: 0.0003, clip_high: 0.0004, updates_per_rollout: 4}}
        ```
    """

    sequence_level = False
    fixes_aggregation = False
    stops_gradient = True

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        tokens = log_ratio(x.logp, x.old_logp, x.mask)  # (B, T)
        sequence = masked_mean(tokens, x.mask)[:, None]  # (B, 1)
        u = (sequence.detach() + tokens - tokens.detach()).exp()  # (B, T), equal within a row
        surrogate, stats = clipped_surrogate(u, x, self.clip_low, self.clip_high, self.dual_clip)
        return -masked_sum(surrogate, x.token_weight, x.mask), stats
