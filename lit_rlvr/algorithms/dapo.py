"""DAPO: decoupled clip and dynamic sampling policy optimisation."""

from __future__ import annotations

from typing import Any

from lit_rlvr.advantages import Advantage
from lit_rlvr.algorithms.grpo import GRPO
from lit_rlvr.common.arguments import check_within
from lit_rlvr.options import Loss
from lit_rlvr.types import GroupSelection


class DAPO(GRPO):
    """`-(1/N) sum_i sum_t min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)`: a token mean with a wider upper clip.

    Source: Yu et al. 2025 (DAPO, arXiv 2503.14476), eqs. 8-12, whose text and code average over the whole batch;
    APMPO, eq. 13, writes `loss: {aggregation: group_token_mean}`.

    Example:
        ```yaml
        model: {class_path: DAPO, init_args: {dynamic_sampling: correct, max_sampling_rounds: 5}}
        ```

    Args:
        dynamic_sampling: drop groups whose completions all have the same value of this, and sample more prompts to
            replace them: `reward` (or true), the weighted sum of all rewards; `correct`, as in the paper and verl's
            recipe (`filter_groups.metric: acc`), whatever else is in the sum; the name of one reward; false = none.
        max_sampling_rounds: most batches of prompts to sample in one iteration; then it trains on the groups it has.
        kwargs: the options of `GRPO`.
    """

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        loss: Loss = Loss(aggregation="token_mean"),
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        dynamic_sampling: bool | str = "reward",
        max_sampling_rounds: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, clip_low=clip_low, clip_high=clip_high, **kwargs)
        check_within("[1, inf)", "model", max_sampling_rounds=max_sampling_rounds)
        by = dynamic_sampling if isinstance(dynamic_sampling, str) else "reward"
        if dynamic_sampling:
            min_mixed_fraction = 1.0
        else:
            min_mixed_fraction = self.selection.min_mixed_fraction
        self.selection = GroupSelection(min_mixed_fraction, max_sampling_rounds, bool(dynamic_sampling), by)
