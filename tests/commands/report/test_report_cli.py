"""`report` on runs that `fit` wrote: seeds become one group, next to a rival."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import completions, fit, to

CLI = Callable[..., Any]
PASS = ("--rollout.evaluation.samples", "4", "--rollout.evaluation.sampling.temperature", "1.0")


@pytest.mark.slow
def test_two_seeds_are_compared_with_a_rival(run_folder: Path, lit_rlvr: CLI) -> None:
    for seed in ("0", "1"):
        fit(lit_rlvr, *to(f"grpo_{seed}"), "--seed_everything", seed, *PASS)
    fit(lit_rlvr, *to("hot"), "--model.init_args.lr", "0.01", *PASS)
    result = lit_rlvr("report", "grpo_0", "grpo_1", "hot", "--out", "page.html")
    assert (result.status, result.out) == (0, "Page: page.html\n"), result.err
    page = (run_folder / "page.html").read_text()
    for words in (
        "GRPO on Arithmetic", "3 runs in 2 groups", "pass@2 on arithmetic", "pass@4 on arithmetic", "Entropy",
        "Correct completions", "Seconds per iteration", "No signal (share of prompts)", "arithmetic/<wbr>pass@4",
        "Token by token", completions(run_folder / "hot")[0]["prompt"],
    ):  # fmt: skip
        assert words in page, words
    differs = page[page.index("What differs") : page.index("What all have in common")]
    assert differs.count("<tr>") == 2 and "model.<wbr>lr" in differs, "the learning rate is all that differs"
    assert "Some runs are incomplete" not in page
