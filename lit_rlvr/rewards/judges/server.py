"""The server of a judge: its options, the file of its answers, and a client that asks many questions at once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlvr.common.packages import require
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.errors import UserError, check_within, first_line, option_group, refuse_all, shown
from lit_rlvr.rewards.function import resolved
from lit_rlvr.rewards.judges.prompts import Question

WHERE = "rollout.rewards: judge.server"
_TABLES = """
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (
    judge TEXT PRIMARY KEY, calls INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER
);
"""
"""Without `synchronous`, a commit costs nothing, and survives the death of the process but not of the machine."""
BROKEN = (ValueError, TypeError, LookupError, AttributeError)
"""Exceptions at a reply that is no JSON, or of another form."""


@option_group("judge.server")
@dataclass(frozen=True)
class JudgeServer:
    """An OpenAI-compatible server with the model that judges, and the limits of its use.

    Args:
        base_url: the address, such as http://127.0.0.1:8000/v1 of `lit-rlvr serve`, or https://api.openai.com/v1.
        model: the model's name there.
        api_key_env: NAME of the environment variable that holds the server's key, if it has one.
        structured: ask for answers by a JSON schema; false for a server that takes none.
        max_tokens: most tokens of an answer, thoughts included.
        temperature: temperature of sampling; above 0 each question has a seed of its own. null: the server's own.
        timeout: seconds that a call may take.
        max_retries: further tries of a call that the server refuses as too many (429), or that fails by a timeout, a
            lost connection or a fault of the server, after waits that double.
        max_concurrent: most calls at a time.
        max_calls: calls after which the run ends; null: no limit. Further tries of a call are not counted, the question
            with which each start tries the server is.
        max_total_tokens: tokens, of questions and answers, after which the run ends; null: no limit.
        prompt_price: US dollars for a million tokens of questions, for the metric `cost`.
        completion_price: the same for answers.
        answers: file that keeps all answers by the content of their questions, so that none is paid for twice, and
            counts each judge's calls and tokens for its limits. null: `judge_answers.sqlite` in the run's folder.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    structured: bool = True
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
        check_within("[1, inf)", WHERE, max_tokens=self.max_tokens, max_concurrent=self.max_concurrent,
                     max_calls=self.max_calls, max_total_tokens=self.max_total_tokens)  # fmt: skip
        check_within("(0, inf)", WHERE, timeout=self.timeout)
        check_within("[0, inf)", WHERE, max_retries=self.max_retries, temperature=self.temperature,
                     prompt_price=self.prompt_price, completion_price=self.completion_price)  # fmt: skip
        if not self.base_url.startswith(("http://", "https://")):
            raise UserError(f"{WHERE}.base_url: {self.base_url!r} is no address; give http://HOST:PORT/v1")
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise UserError(f"{WHERE}.api_key_env: the environment variable {self.api_key_env} is not set")


class Answers:
    """Answers of judges and the sum of what was spent on them, in a SQLite file which processes may share.

    Args:
        judge: the server and its model: other judges have answers and spending of their own in the file.
        path: the file; ":memory:" = none, they end with this process.

    Raises:
        UserError: the file cannot be opened, or is none of these.
    """

    def __init__(self, judge: str, path: str | Path = ":memory:") -> None:
        self.judge, self.path = judge, path
        try:
            self._file = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._file.executescript(_TABLES)
            self.spent()
        except sqlite3.Error as error:
            raise UserError(
                f"{shown(path)}: no file of judges' answers ({error}); delete it or name another"
            ) from error

    def get(self, request: dict[str, Any]) -> str | None:
        """Return the text of the answer to a request; None if there is none."""
        row = self._file.execute("SELECT text FROM answers WHERE key = ?", [self._key_of(request)]).fetchone()
        return None if row is None else str(row[0])

    def add(self, request: dict[str, Any], text: str) -> None:
        """Keep the answer to a request; the first one stays."""
        self._file.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", [self._key_of(request), text])

    def _key_of(self, request: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps([self.judge, request], sort_keys=True).encode()).hexdigest()

    def spend(self, calls: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Add to what was spent."""
        self._file.execute(
            "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT (judge) DO UPDATE SET calls = calls + excluded.calls, "
            "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
            "completion_tokens = completion_tokens + excluded.completion_tokens",
            [self.judge, calls, prompt_tokens, completion_tokens],
        )  # fmt: skip

    def spent(self) -> tuple[int, int, int]:
        """Return the judge's calls and tokens of questions and answers, of all processes that use the file."""
        sums = self._file.execute("SELECT * FROM spent WHERE judge = ?", [self.judge]).fetchone() or (
            self.judge,
            0,
            0,
            0,
        )
        return sums[1], sums[2], sums[3]


class Answer(NamedTuple):
    """The answer to a question.

    Args:
        text: what the judge says; "" if the call failed.
        error: why the call failed; "" if it did not.
        seconds: the time that the call took; None = the answer was kept from an earlier call.
    """

    text: str
    error: str = ""
    seconds: float | None = None


class Client:
    """A client of a judge's server, which keeps the answers."""

    trial = Question("", 'Reply with {"score": 1}.', (("score", (0, 1)),), has_reason=False)

    def __init__(self, server: JudgeServer) -> None:
        require("openai", "a judge")
        from openai import AsyncOpenAI

        self.server = server
        self._judge = f"{server.model} at {server.base_url}"
        self.answers = Answers(self._judge, Path(server.answers).expanduser() if server.answers else ":memory:")
        self._slots = asyncio.Semaphore(server.max_concurrent)
        key = os.environ[server.api_key_env] if server.api_key_env else "none"
        self._openai = AsyncOpenAI(
            base_url=server.base_url, api_key=key, timeout=server.timeout, max_retries=server.max_retries
        )

    def begin_run(self, folder: Path) -> None:
        """Keep answers in the run's folder, unless the options name a file."""
        path = folder / "judge_answers.sqlite"
        if self.server.answers is None and self.answers.path != path:
            folder.mkdir(parents=True, exist_ok=True)
            self.answers = Answers(self._judge, path)

    def connect(self) -> None:
        """Ask one question, which tells whether the server answers.

        Raises:
            UserError: it does not.
        """
        if error := resolved(self._answer(self.request(self.trial))).error:
            raise UserError(f"{error}; start the server, or mend base_url, model, api_key_env or structured")

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the answers to questions, all of them different, in order.

        Raises:
            UserError: the budget is used up.
        """

        async def answers() -> list[Answer]:
            return await asyncio.gather(*(self._known_or_new(self.request(question)) for question in questions))

        return resolved(answers())

    def request(self, question: Question) -> dict[str, Any]:
        """Return all that a question's answer depends on."""
        server = self.server
        roles = {"system": question.rules, "user": question.text}
        return {
            "model": server.model,
            "messages": [{"role": role, "content": text} for role, text in roles.items() if text],
            "max_completion_tokens": server.max_tokens,
            **({"response_format": question.response_format} if server.structured else {}),
            **({} if server.temperature is None else {"temperature": server.temperature}),
            **({"seed": derive_seed("judge", question.text) % 2**31} if server.temperature else {}),
        }

    async def _known_or_new(self, request: dict[str, Any]) -> Answer:
        known = self.answers.get(request)
        return await self._answer(request) if known is None else Answer(known)

    async def _answer(self, request: dict[str, Any]) -> Answer:
        """Call the server, unless the budget is used up; keep what it answers and what that costs."""
        from openai import OpenAIError

        async with self._slots:
            self._check_budget()
            self.answers.spend(calls=1)
            started = time.perf_counter()
            try:
                text, *tokens = await self.send(request)
            except (OpenAIError, *BROKEN) as error:
                cause = error.__cause__ if str(error) == "Connection error." else None
                place = f"judge {self.server.model!r} at {self.server.base_url}"
                return Answer("", f"{place}: {first_line(cause or error)}", time.perf_counter() - started)
            self.answers.spend(0, *tokens)
            self.answers.add(request, text)
            return Answer(text, "", time.perf_counter() - started)

    async def send(self, request: dict[str, Any]) -> tuple[str, int, int]:
        """Return the text of the reply to a request, and the tokens of both."""
        reply: Any = await self._openai.chat.completions.create(**request)
        return reply.choices[0].message.content or "", reply.usage.prompt_tokens, reply.usage.completion_tokens

    def _check_budget(self) -> None:
        used, server = self.spent(), self.server
        budget = {
            "max_calls": (used["calls"], server.max_calls),
            "max_total_tokens": (used["tokens"], server.max_total_tokens),
        }
        refuse_all(
            f"{WHERE}.{option}: the budget is used up ({spent} of {limit}); raise it, and resume with --ckpt_path "
            "last: no answer is paid for twice"
            for option, (spent, limit) in budget.items()
            if limit is not None and spent >= limit
        )

    def spent(self) -> dict[str, float]:
        """Return the calls, tokens and US dollars that were spent on the file of answers."""
        calls, questions, answers = self.answers.spent()
        dollars = questions * self.server.prompt_price + answers * self.server.completion_price
        return {"calls": calls, "tokens": questions + answers, "cost": dollars / 1e6}
