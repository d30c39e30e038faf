"""Stops the run when a reward's own check fails too often."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_rlvr.distributed.collectives import gather_objects
from lit_rlvr.errors import UserError, shown
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.types import Completion, Prompt


def stop_on_failures(
    prompts: list[Prompt],
    completions: list[list[Completion]],
    scores: Scores,
    limit: float,
    run: Path,
    together: bool,
) -> None:
    """If more than a share `limit` of checks failed, save the completions to `failed_rewards.jsonl` in `run` and stop;
    stop too if no reward judged any completion of an iteration.

    Args:
        run: the run's folder.
        together: an iteration, counted over all ranks; then collective: call it on every rank.

    Raises:
        UserError: too many checks failed, which names the reward, the first sample and the file; or none judged.
    """
    counts = (int(scores.failed.sum()), int(scores.masked.sum()), scores.failed.numel())
    ranks = gather_objects(counts) if together else [counts]
    failed, masked, total = (sum(numbers) for numbers in zip(*ranks, strict=True))
    if together and not failed and masked == total:
        names = ", ".join(scores.parts)
        raise UserError(
            f"rollout.rewards: {names}: None for all {total} completions of an iteration, so there is nothing to train "
            "on; return a number, a bool or a RewardResult (None leaves a completion out)"
        )
    if failed <= limit * total:
        return
    if not counts[0]:
        raise UserError(f"a reward failed on {failed} of {total} completions, all of them on another rank")
    path = run / "failed_rewards.jsonl"
    rows: list[dict[str, Any]] = []
    for p, g in scores.failed.nonzero().tolist():
        reasons = {name: r.detail for name, r in scores.details[p][g].items() if r.status == "error"}
        sample = prompts[p].sample
        rows.append({"id": sample.id, "source": sample.source, "completion": completions[p][g].text, "failed": reasons})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    name, reason = next(iter(rows[0]["failed"].items()))
    raise UserError(
        f"reward {name!r} failed on {failed} of {total} completions, above rollout.max_failure_rate="
        f"{limit}; first, on sample {rows[0]['id']}: {reason}; all of them are in {shown(path)}"
    )
