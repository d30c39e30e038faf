"""`SyncSource.count_repeats_in_round`: how often a prompt occurred earlier in the iteration."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tiny import make_prompt
from two_ranks import in_two_ranks

from lit_rlvr.datamodules.reading.stream import PromptStream
from lit_rlvr.rollout.source import SyncSource
from lit_rlvr.types import Sampling


def _rank_counts_repeats(rank: int) -> None:
    """Ten prompts of an iteration over three samples: five rounds of one prompt a rank, across epochs."""
    stream = PromptStream([make_prompt([5], name) for name in "abc"], seed=1)
    data: Any = SimpleNamespace(stream=stream, prompts_per_rollout=2, cursor={"epoch": 3, "position": 1})
    source = SyncSource(None, None, data, 4, Sampling(), 0)  # type: ignore[arg-type]  # asked for repeats alone
    cursor, seen = data.cursor, Counter[str]()
    for rounds in range(1, 6):
        prompts, cursor = stream.take(2, cursor)
        for r, prompt in enumerate(prompts):
            if r == rank:
                assert source.count_repeats_in_round(rounds) == [seen[prompt.sample.id]]
            seen[prompt.sample.id] += 1
    assert max(seen.values()) >= 3


def test_repeats_count_earlier_rounds_and_lower_ranks(tmp_path: Path) -> None:
    in_two_ranks(tmp_path, _rank_counts_repeats)
