"""Records what the loss did with each token of some groups, for `lit-rlvr explain` and the report."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.run_files import list_traces, trace_folder
from lit_rlvr.distributed.collectives import world_size
from lit_rlvr.objectives import LossInputs
from lit_rlvr.types import Completion, Rollout


class Trace:
    """Watches some groups of a rollout through its updates; later updates overwrite earlier ones.

    Args:
        prompts: how many groups to watch.
    """

    def __init__(self, prompts: int) -> None:
        self.prompts = prompts
        self.watched: list[int] = []
        self.live = False  # whether any group trained on has a nonzero advantage
        self.tokens: dict[int, dict[str, Tensor]] = {}

    def choose(self, advantages: Tensor, trained: Iterable[int]) -> None:
        """Watch the first groups; if none has a nonzero advantage, the first group that has one replaces the last.

        Args:
            advantages: (P, G).
            trained: the groups that are trained on.
        """
        self.watched = list(range(min(self.prompts, len(advantages))))
        live = []
        for p in sorted(trained):
            if bool((advantages[p] != 0).any()):
                live.append(p)
        self.live = bool(live)
        if live and not set(live) & set(self.watched):
            self.watched[-1] = live[0]

    def watch(self, rows: list[int], group_size: int, x: LossInputs) -> None:
        """Record the per-token numbers of watched rows once their gradients are computed."""
        chosen = {}
        for k, row in enumerate(rows):
            if row // group_size in self.watched:
                chosen[k] = row
        if not chosen:
            return

        def note(gradient: Tensor) -> None:
            for k, row in chosen.items():
                numbers = {
                    "logp": x.logp[k],
                    "ratio": (x.logp[k] - x.old_logp[k]).exp(),
                    "weight": -gradient[k] / world_size(),
                }
                if x.advantages.shape[1] > 1:
                    numbers["token_advantage"] = x.advantages[k]
                own_numbers = {}
                for name, values in numbers.items():
                    own_numbers[name] = values.detach()[x.mask[k]].clone()
                self.tokens[row] = own_numbers

        x.logp.register_hook(note)

    def records(self, rollout: Rollout, tokenizer: Any) -> list[dict[str, Any]]:
        """Return the watched groups as JSON records."""
        size = rollout.group_size
        groups = []
        for p in self.watched:
            groups.append(
                {
                    "id": rollout.prompts[p].sample.id,
                    "prompt": tokenizer.decode(rollout.prompts[p].token_ids),
                    "answer": rollout.prompts[p].sample.answer,
                    "completions": [self._completion(rollout, p, g, tokenizer) for g in range(size)],
                }
            )
        return groups

    def _completion(self, rollout: Rollout, p: int, g: int, tokenizer: Any) -> dict[str, Any]:
        completion = rollout.completions[p][g]
        numbers = self.tokens.get(p * rollout.group_size + g, {})
        criteria: dict[str, float] = {}
        if rollout.details:
            for result in rollout.details[p][g].values():
                criteria |= result.criteria
        parts: dict[str, float | None] = {}
        for name, part in rollout.parts.items():
            parts[name] = None if part[p, g].isnan() else float(part[p, g])
        traced = {}
        for name, values in numbers.items():
            traced[name] = _traced_numbers(values, completion.from_model)
        return {
            "text": completion.text,
            **({"sampled": list(completion.sampled)} if completion.sampled else {}),
            "tokens": [tokenizer.decode([token]) for token in completion.token_ids],
            "finish_reason": completion.finish_reason,
            "parts": parts,
            **rollout.record(p, g),
            "criteria": criteria,
            **_turn_rewards(completion),
            **calls_of(completion),
            "engine_logp": [round(v, 6) for v in completion.logprobs],
            **traced,
        }


def _turn_rewards(completion: Completion) -> dict[str, list[float | None]]:
    """Return the rewards of the turns, if one has a reward, under the key that they have in a trace."""
    rewards = [turn.reward for turn in completion.turns]
    if any(reward is not None for reward in rewards):
        return {"turn_rewards": rewards}
    return {}


def calls_of(completion: Completion) -> dict[str, list[dict[str, Any]]]:
    """Return the calls of an agent: each turn's sequence in the row, its tokens, and those that the agent added; behind
    them the calls that are not trained, with the reason."""
    if not completion.untrained and not any(turn.observed for turn in completion.turns):
        return {}
    ends = list(accumulate(completion.sequence_lengths))
    calls: list[dict[str, Any]] = []
    for turn in completion.turns:
        start, end = turn.span
        added = turn.observed[1] - turn.observed[0]
        calls.append({"sequence": bisect_right(ends, start), "tokens": end - start, "added": added})
    for message in completion.untrained:
        calls.append({"untrained": message.reason, "tokens": message.tokens})
    return {"calls": calls}


def _traced_numbers(values: Tensor, sampled: Iterable[bool]) -> list[float]:
    """Return a number for each token: those of the sampled ones, and 0 for observed ones."""
    numbers = iter(values.tolist())
    return [float(f"{next(numbers):.6g}") if is_sampled else 0.0 for is_sampled in sampled]


def write_trace(run_folder: str | Path, step: int, algorithm: str, groups: list[dict[str, Any]]) -> None:
    """Save one step's groups as `rollouts/step-NNNNNN.json`, atomically."""
    path = trace_folder(run_folder) / f"step-{step:06d}.json"
    write_atomically(path, json.dumps({"step": step, "algorithm": algorithm, "groups": groups}, ensure_ascii=False))


def drop_traces_after(run_folder: str | Path, step: int) -> None:
    """Delete the files of later steps, which a resumed run writes again."""
    for later, path in list_traces(run_folder).items():
        if later > step:
            path.unlink()
