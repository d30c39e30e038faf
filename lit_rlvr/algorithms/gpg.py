"""GPG: group policy gradient."""

from __future__ import annotations

from typing import Any

from lit_rlvr.advantages import Advantage
from lit_rlvr.algorithms.reinforce import Reinforce


class GPG(Reinforce):
    """`-(1/N) sum_i sum_t A logp`: REINFORCE's loss, without ratio and clip, with GPG's advantage.

    Source: Chu et al. 2025 (GPG, arXiv 2504.02546); AAPO, eq. 3, writes `loss: {aggregation: group_token_mean}`.

    Example:
        ```yaml
        model:
          class_path: GPG
          init_args:
            advantage: {class_path: GPGAdvantage, init_args: {min_valid_fraction: 0.6}}
        ```

    Args:
        kwargs: the options of `Reinforce`.
    """

    def __init__(self, advantage: Advantage | str = "gpg", **kwargs: Any) -> None:
        super().__init__(advantage=advantage, **kwargs)
