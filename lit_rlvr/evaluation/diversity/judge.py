"""Judge score: a language model at an endpoint scores how different a prompt's correct solutions are."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lit_rlvr.common.packages import require
from lit_rlvr.errors import UserError, check_within
from lit_rlvr.evaluation.diversity.base import CompletionGroup, DiversityMeasure

if TYPE_CHECKING:
    from openai import OpenAI


class JudgeReply(NamedTuple):
    """A reply's text, or the reason why there is none."""

    text: str
    failure: str = ""


def _content(body: str) -> str:
    """Return the message of a chat completion; for any other body, describe it."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return f"not a chat completion: {body}"
    return content if isinstance(content, str) else f"a message without text: {body}"


JUDGE_PROMPT = """\
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

    Any OpenAI-compatible endpoint can serve the model. One request per prompt holds the instruction and the numbered
    solutions, as one user message. The mean leaves out replies without a score and failed requests; the metrics
    `judge_score/unparsed` and `judge_score/failed` count them, and a warning reports them. Source: APMPO, K.6 (its
    judge is GPT-5; it does not give the layout of the solutions).

    Args:
        base_url: the endpoint, without `/chat/completions`: https://api.openai.com/v1
        model: the model's name at the endpoint.
        api_key_env: NAME of the environment variable that holds the key; none: the endpoint needs no key.
        prompt: the instruction; by default that of APMPO, K.6.
        request: further fields of each request, such as `{temperature: 0, max_tokens: 8}`; the endpoint's defaults
            apply to all others.
        retries: how often to retry a request after a rate limit (429), a server error, a time-out or a failed
            connection, with growing pauses or those that the server requests.
        timeout: seconds to wait for one reply.
        concurrency: simultaneous requests of each process.

    Raises:
        UserError: the package openai or the key is missing, an option is out of range, the endpoint cannot be reached,
            or it refuses key or model.
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
        require("openai", "JudgeScore")
        check_within("[0, inf)", "JudgeScore", retries=retries)
        check_within("[1, inf)", "JudgeScore", concurrency=concurrency)
        check_within("(0, inf)", "JudgeScore", timeout=timeout)
        if not base_url.startswith(("http://", "https://")):
            raise UserError(f"JudgeScore.base_url: {base_url!r} must begin with http:// or https://")
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self.prompt, self.request = JUDGE_PROMPT if prompt is None else prompt, request or {}
        self.retries, self.timeout, self.concurrency = retries, timeout, concurrency
        self._key()
        self.add_state("unparsed", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("failed", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def score(self, groups: Sequence[CompletionGroup]) -> list[float | None]:
        replies = self._ask_all([judge_message(self.prompt, group) for group in groups])
        scores = [parse_score(reply.text) for reply in replies]
        failures = [reply.failure for reply in replies if reply.failure]
        others = [r.text for r, score in zip(replies, scores, strict=True) if score is None and not r.failure]
        self.failed += len(failures)
        self.unparsed += len(others)
        for what, found in (("requests failed", failures), ("replies have no score", others)):
            if found:
                _log.warning("%s: %d of %d %s, first: %.200r", self.name, len(found), len(groups), what, found[0])
        return scores

    def compute(self) -> dict[str, Tensor]:
        return super().compute() | {f"{self.name}/unparsed": self.unparsed, f"{self.name}/failed": self.failed}

    def _ask_all(self, messages: Sequence[str]) -> list[JudgeReply]:
        """Return a reply to each message, in order, without the key, which is neither stored nor logged.

        Raises:
            UserError: the endpoint cannot be reached, or refuses the key or the model.
        """
        from openai import OpenAI

        key, retries, timeout = self._key(), self.retries, self.timeout
        with (
            OpenAI(base_url=self.base_url, api_key=key, max_retries=retries, timeout=timeout) as client,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            replies = list(pool.map(partial(self._ask, client), messages))
        return [JudgeReply(*(part.replace(key, "[key]") for part in reply)) for reply in replies]

    def _ask(self, client: OpenAI, message: str) -> JudgeReply:
        import openai

        try:
            response = client.chat.completions.with_raw_response.create(
                model=self.model, messages=[{"role": "user", "content": message}], extra_body=self.request
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise UserError(
                f"JudgeScore: {self.base_url} answers HTTP {error.status_code} to model {self.model!r}; "
                "check base_url, model and the key in api_key_env"
            ) from None  # the server's message may repeat the key
        except openai.APITimeoutError:
            return JudgeReply("", f"no reply within {self.timeout:g} s")
        except openai.APIConnectionError as error:
            raise UserError(f"JudgeScore.base_url: {self.base_url} cannot be reached: {error.__cause__}") from error
        except openai.APIStatusError as error:
            return JudgeReply("", str(error).splitlines()[0])
        return JudgeReply(_content(response.text))

    def _key(self) -> str:
        if self.api_key_env is None:
            return "no-key"  # the client requires a key, and would use OPENAI_API_KEY
        key = os.environ.get(self.api_key_env)
        if not key:
            raise UserError(f"JudgeScore.api_key_env: the environment variable {self.api_key_env} is not set")
        return key


def judge_message(prompt: str, solutions: CompletionGroup) -> str:
    """Return the instruction, then each solution under its number."""
    numbered = [f"Solution {i}:\n{text.strip()}" for i, text in enumerate(solutions, 1)]
    return "\n\n".join([prompt, *numbered])


def parse_score(reply: str) -> float | None:
    """Return the score if the reply is just an integer from 0 to 3; else None.

    The reply may have "Score:", emphasis or brackets around the integer, and thoughts in `<think>` before it.
    """
    answer = re.sub(r"(?s)^.*</think>", "", reply)
    found = re.fullmatch(r"""(?i)[\s*"'`(\[]*(?:score\W{0,4})??([0-3])(?:\.0)?[\s*"'`)\].]*""", answer)
    return float(found[1]) if found else None
