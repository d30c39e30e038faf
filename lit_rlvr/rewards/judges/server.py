"""The server of a judge: its options, and a client that asks many questions at once under a budget."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from lit_rlvr.common.packages import require
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.errors import UserError, check_within, first_line, option_group
from lit_rlvr.rewards.function import event_loop
from lit_rlvr.rewards.judges.answers import Answers, key_of
from lit_rlvr.rewards.judges.prompts import Question

if TYPE_CHECKING:
    from openai import AsyncOpenAI

ANSWERS_FILE = "judge_answers.sqlite"
"""The file of a run's folder with all answers of its judges."""
WHERE = "rollout.rewards: judge.server"
BROKEN = (ValueError, TypeError, LookupError, AttributeError)
"""Exceptions at a reply that is no JSON, or not a chat's."""
TRIAL = Question("", 'Reply with {"score": 1}.', (("score", (0, 1)),), has_reason=False)

_log = logging.getLogger("lit_rlvr")
_T = TypeVar("_T")


@option_group("judge.server")
@dataclass(frozen=True)
class JudgeServer:
    """An OpenAI-compatible server with the model that judges, and the limits of its use.

    Args:
        base_url: the address, such as http://127.0.0.1:8000/v1 of `lit-rlvr serve` or https://api.openai.com/v1.
        model: the model's name there.
        api_key_env: NAME of the environment variable that holds the server's key, if it has one.
        max_tokens: most tokens of an answer, thoughts included.
        temperature: of sampling; above 0 each question has a seed of its own; null: the server's, for models that take none.
        timeout: seconds that a call may take.
        max_retries: further tries of a call that the server refuses as too many (429), or that fails by a timeout, a
            lost connection or a fault of the server, after waits that double.
        max_concurrent: most calls at a time.
        max_calls: calls after which the run ends; null: no limit.
        max_total_tokens: tokens, of questions and answers, after which the run ends; null: no limit.
        prompt_price, completion_price: US dollars for a million tokens, for the metric `cost`.
        answers: file that keeps all answers by the content of their questions, so that none is paid for twice, and
            counts calls and tokens. null: `judge_answers.sqlite` in the run's folder, which is there on resuming.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    max_tokens: int = 512
    temperature: float | None = 0.0
    timeout: float = 60.0
    max_retries: int = 5
    max_concurrent: int = 64
    max_calls: int | None = None
    max_total_tokens: int | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0
    answers: str | None = None

    def __post_init__(self) -> None:
        counts = {"max_tokens": self.max_tokens, "max_concurrent": self.max_concurrent, "max_calls": self.max_calls}
        check_within("[1, inf)", WHERE, **counts, max_total_tokens=self.max_total_tokens)
        check_within("(0, inf)", WHERE, timeout=self.timeout)
        prices = {"prompt_price": self.prompt_price, "completion_price": self.completion_price}
        check_within("[0, inf)", WHERE, max_retries=self.max_retries, temperature=self.temperature, **prices)
        if not self.base_url.startswith(("http://", "https://")):
            raise UserError(f"{WHERE}.base_url: {self.base_url!r} is no address; give http://HOST:PORT/v1")
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise UserError(f"{WHERE}.api_key_env: the environment variable {self.api_key_env} is not set")


class Answer(NamedTuple):
    """The answer to a question.

    Args:
        text: what the judge says; "" if the call failed.
        error: why the call failed; "" if it did not.
        seconds: the time that the call took; None = no call was needed.
    """

    text: str
    error: str = ""
    seconds: float | None = None


class Client:
    """A client of a judge's server. It asks many questions at once, under the budget, and keeps the answers."""

    def __init__(self, server: JudgeServer) -> None:
        require("openai", "a judge")
        self.server = server
        self.answers = Answers() if server.answers is None else Answers(Path(server.answers).expanduser())
        self._takes_schema: bool | None = None  # unknown before the first call

    @cached_property
    def _openai(self) -> AsyncOpenAI:
        """The client of this process, which stays connected."""
        from openai import AsyncOpenAI

        server = self.server
        key = os.environ[server.api_key_env] if server.api_key_env else "none"
        return AsyncOpenAI(
            base_url=server.base_url, api_key=key, timeout=server.timeout, max_retries=server.max_retries
        )

    @cached_property
    def _slots(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self.server.max_concurrent)

    def begin_run(self, folder: Path) -> None:
        """Keep answers in the run's folder, unless the options name a file."""
        if self.server.answers is None:
            self.answers.close()
            self.answers = Answers(folder / ANSWERS_FILE)

    def connect(self) -> None:
        """Ask one question, which tells whether the server is there and whether it takes a schema for its answers.

        Raises:
            UserError: it does not answer.
        """
        from openai import BadRequestError, OpenAIError

        if self._takes_schema is not None:
            return
        trial = self._request(TRIAL)
        try:
            try:
                self._run([self._call(trial)])
                self._takes_schema = True
            except BadRequestError:
                self._takes_schema = False
                self._run([self._call(trial)])
                _log.info("%s takes no JSON schema, so its answers may have other forms", self.server.base_url)
        except (OpenAIError, *BROKEN) as error:
            raise UserError(
                f"{self._failure(error)}; start the server, or mend base_url, model or api_key_env"
            ) from error

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the answers to questions, all of them different, in order.

        Raises:
            UserError: the budget is used up, or the server does not know the model or the key.
        """
        requests = [self._request(question) for question in questions]
        known = [self.answers.get(key_of(request)) for request in requests]
        if None in known:
            self.connect()
        new = iter(self._run([self._answer(one) for one, text in zip(requests, known, strict=True) if text is None]))
        return [next(new) if text is None else Answer(text) for text in known]

    def _request(self, question: Question) -> dict[str, Any]:
        """Return all that a question's answer depends on."""
        server = self.server
        roles = {"system": question.rules, "user": question.text}
        return {
            "model": server.model,
            "messages": [{"role": role, "content": text} for role, text in roles.items() if text],
            "max_completion_tokens": server.max_tokens,
            "response_format": question.response_format,
            **({} if server.temperature is None else {"temperature": server.temperature}),
            **({"seed": derive_seed("judge", question.text) % 2**31} if server.temperature else {}),
        }

    async def _answer(self, request: dict[str, Any]) -> Answer:
        """Call the server, unless the budget is used up; keep what it answers."""
        from openai import AuthenticationError, NotFoundError, OpenAIError, PermissionDeniedError

        async with self._slots:
            started = time.perf_counter()
            try:
                text = await self._call(request)
            except (AuthenticationError, NotFoundError, PermissionDeniedError) as error:
                raise UserError(f"{self._failure(error)}; mend base_url, model or api_key_env") from error
            except (OpenAIError, *BROKEN) as error:
                return Answer("", self._failure(error), time.perf_counter() - started)
            self.answers.add(key_of(request), text)
            return Answer(text, "", time.perf_counter() - started)

    async def _call(self, request: dict[str, Any]) -> str:
        """Return the text that the server answers, and count what it costs."""
        self._check_budget()
        self.answers.spend(calls=1)
        left_out = "response_format" if self._takes_schema is False else ""
        text, usage = await self._send({name: value for name, value in request.items() if name != left_out})
        if usage is not None:
            self.answers.spend(0, usage.prompt_tokens, usage.completion_tokens)
        elif self.server.max_total_tokens is not None:
            raise UserError(f"{WHERE}.max_total_tokens: {self.server.base_url} does not count tokens; use max_calls")
        return text

    async def _send(self, request: dict[str, Any]) -> tuple[str, Any]:
        """Send a request; return the text of the reply, and its numbers of tokens if the server says them."""
        reply = await self._openai.chat.completions.create(**request)
        return reply.choices[0].message.content or "", reply.usage

    def _check_budget(self) -> None:
        spent, server = self.answers.spent(), self.server
        for option, used, limit in (
            ("max_calls", spent.calls, server.max_calls),
            ("max_total_tokens", spent.prompt_tokens + spent.completion_tokens, server.max_total_tokens),
        ):
            if limit is not None and used >= limit:
                raise UserError(
                    f"{WHERE}.{option}: the budget is used up ({used} of {limit}); raise it, and resume with "
                    "--ckpt_path last: answers that are there are not asked for again"
                )

    def _failure(self, error: BaseException) -> str:
        cause = error.__cause__ if str(error) == "Connection error." else None
        return f"judge {self.server.model!r} at {self.server.base_url}: {first_line(cause or error)}"

    def _run(self, calls: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
        """Return the results of calls, once all have ended.

        Raises:
            BaseException: that of the first call that raised one.
        """

        async def all_of() -> list[_T | BaseException]:
            return await asyncio.gather(*calls, return_exceptions=True)

        results = asyncio.run_coroutine_threadsafe(all_of(), event_loop(os.getpid())).result()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results  # type: ignore[return-value]

    def cost(self) -> float:
        """Return the US dollars spent so far."""
        spent, server = self.answers.spent(), self.server
        prices = spent.prompt_tokens * server.prompt_price, spent.completion_tokens * server.completion_price
        return sum(prices) / 1e6
