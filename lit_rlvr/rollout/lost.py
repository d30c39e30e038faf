"""Warns when most of what a run generates gives no signal: once, and again when it gets much worse."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from lit_rlvr.types import Sampling

RECENT = 4
"""Iterations that a share is averaged over."""
MOST = 0.5
WORSE = 0.2


class LostWork:
    """Tracks the shares of completions that were cut off and of prompts without a signal."""

    def __init__(self) -> None:
        self._recent: dict[str, list[float]] = {}
        self._said: dict[str, float] = {}

    def look(self, metrics: Mapping[str, float], sampling: Sampling) -> list[str]:
        """Add one iteration; returns the warnings it calls for.

        Args:
            metrics: the metrics that it logged.
            sampling: training's.
        """
        said = []
        if (share := self._grown("rollout/truncated", metrics)) is not None:
            said.append(
                f"{share:.0%} of the completions were cut off before they ended; raise rollout.sampling.max_tokens="
                f"{sampling.max_tokens}" + (f" or max_turns={sampling.max_turns}" if sampling.max_turns > 1 else "")
            )
        if (share := self._grown("train/no_signal", metrics)) is not None:
            more = "more completions (rollout.group_size)"
            if metrics["rollout/accuracy"] > 0.5:
                advice = f"harder prompts (lit-rlvr filter), or {more}"
            else:
                advice = f"easier prompts (lit-rlvr filter), {more}, or a warm start (warm_start.steps)"
            said.append(
                f"{share:.0%} of the prompts gave no signal: their completions all had the same reward; try {advice}"
            )
        return said

    def _grown(self, name: str, metrics: Mapping[str, float]) -> float | None:
        """A share's recent mean if above `MOST` and more than `WORSE` above the last one reported, else None."""
        self._recent[name] = [*self._recent.get(name, []), metrics[name]][-RECENT:]
        share = fmean(self._recent[name])
        if share <= max(MOST, self._said.get(name, 0.0) + WORSE):
            return None
        self._said[name] = share
        return share
