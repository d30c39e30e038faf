"""Judge score: how different the ways of a prompt's correct solutions are, by the word of a language model."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.diversity.base import DiversityMeasure, Group
from lit_rlvr.diversity.endpoint import ChatEndpoint

PROMPT = """\
Given the following set of correct solutions to a math problem, evaluate the diversity of the reasoning methods used. \
Assign a single integer score from 0 to 3 based on the following criteria:
- 0: Solutions use identical logic and phrasing (High Repetition).
- 1: Solutions use the same underlying logic but different phrasing.
- 2: Solutions use slightly different logical steps or intermediate derivations.
- 3: Solutions employ fundamentally different mathematical approaches (e.g., Coordinate Geometry vs. Synthetic \
Geometry, or Induction vs. Direct Proof).
Output only the single numerical score."""
"""The prompt of APMPO, K.6."""

_log = logging.getLogger("lit_rlvr")


class JudgeScore(DiversityMeasure):
    """Mean score, from 0 (the same) to 3 (different approaches), of a prompt's correct solutions by a language model.

    The model is behind any OpenAI-compatible endpoint. One request per prompt holds the instruction and the numbered
    solutions, as one user message. Replies that are no score and requests that fail are left out of the mean, counted
    as `judge_score/unparsed` and `judge_score/failed`, and named in a warning. Source: APMPO, K.6 (its judge is GPT-5;
    how the solutions are laid out is not said there).

    Args:
        base_url: the endpoint, up to and without `/chat/completions`: https://api.openai.com/v1
        model: its name there.
        api_key_env: NAME of the environment variable that holds the key; none: the endpoint wants no key.
        prompt: the instruction; by default that of APMPO, K.6.
        request: further fields of each request, such as `{temperature: 0, max_tokens: 8}`; what is not given is the
            endpoint's default.
        retries: repetitions of a request that met a rate limit (429), a server error, a time-out or no connection, with
            growing pauses, or those the server asks for.
        timeout: seconds to wait for one reply.
        concurrency: requests at a time, of each process.

    Raises:
        UserError: the package openai or the key is missing, the endpoint cannot be reached, or it refuses key or model.
    """

    name = "judge_score"
    correct_only = True
    higher_is_better = True
    unparsed: Tensor
    failed: Tensor

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        prompt: str | None = None,
        request: dict[str, Any] | None = None,
        retries: int = 5,
        timeout: float = 120.0,
        concurrency: int = 8,
    ) -> None:
        super().__init__()
        self.prompt = PROMPT if prompt is None else prompt
        self.endpoint = ChatEndpoint(base_url, model, api_key_env, request or {}, retries, timeout, concurrency)
        self.add_state("unparsed", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("failed", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def score(self, groups: Sequence[Group]) -> list[float | None]:
        replies = self.endpoint.ask([judge_message(self.prompt, group) for group in groups])
        scores = [parse_score(reply.text) for reply in replies]
        failures = [reply.failure for reply in replies if reply.failure]
        others = [r.text for r, score in zip(replies, scores, strict=True) if score is None and not r.failure]
        self.failed += len(failures)
        self.unparsed += len(others)
        for what, found in (("requests failed", failures), ("replies are no score", others)):
            if found:
                _log.warning("%s: %d of %d %s, first: %.200r", self.name, len(found), len(groups), what, found[0])
        return scores

    def compute(self) -> dict[str, Tensor]:
        counts = {f"{self.name}/unparsed": self.unparsed, f"{self.name}/failed": self.failed}
        return super().compute() | counts


def judge_message(prompt: str, solutions: Group) -> str:
    """The instruction, then each solution under its number."""
    numbered = [f"Solution {i}:\n{text.strip()}" for i, text in enumerate(solutions, 1)]
    return "\n\n".join([prompt, *numbered])


def parse_score(reply: str) -> float | None:
    """The score, if the reply is nothing else than an integer from 0 to 3; "Score:", emphasis and brackets may stand
    around it, and thoughts in `<think>` before it."""
    answer = re.sub(r"(?s)^.*</think>", "", reply)
    found = re.fullmatch(r"""(?i)[\s*"'`(\[]*(?:score\W{0,4})??([0-3])(?:\.0)?[\s*"'`)\].]*""", answer)
    return float(found[1]) if found else None
