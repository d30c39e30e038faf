"""The server of a judge: its options, and a client that asks many questions at once."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lit_rlvr.common.arguments import check_within, option_group
from lit_rlvr.common.log import log
from lit_rlvr.common.packages import require
from lit_rlvr.common.paths import expanded
from lit_rlvr.common.resuming import how_to_resume
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.errors import UserError, first_line, refuse_all
from lit_rlvr.rewards.base import RunProcess
from lit_rlvr.rewards.function import resolved
from lit_rlvr.rewards.judges.answers import Answers, Spent, machine_file, machine_files
from lit_rlvr.rewards.judges.prompts import Question, Reply
from lit_rlvr.rewards.judges.replies import Received, parse_body, read_chat, without_surrogates
from lit_rlvr.workers.pool import Waiting

WHERE = "rollout.rewards: judge.server"
BROKEN = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""Exceptions at a reply that is no JSON, or of another form."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds before the further tries of a call whose answer is broken; as OpenAI's client waits for others."""
REMINDER = (
    "Your last answer to this could not be read. Think briefly, and reply with one JSON object in the form above and "
    "with nothing else."
)
OPTIONS_OF_KEYS = {
    "model": "model", "messages": "task", "temperature": "temperature", "response_format": "structured",
    "max_tokens": "max_tokens, with token_limit: max_tokens", "max_completion_tokens": "max_tokens",
    "seed": "", "n": "", "stream": "",
}  # fmt: skip
"""What requests set themselves -> the option for it, if there is one."""


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
        token_limit: the name of that limit in requests; older servers know `max_tokens` alone.
        temperature: temperature of sampling; above 0 each question has a seed of its own. null: the server's own.
        extra_body: further entries of every request, such as {chat_template_kwargs: {enable_thinking: false}} or
            {reasoning_effort: low}.
        extra_headers: further headers of every request.
        timeout: seconds that a try of a call may take, from its connection to the last byte of its answer.
        max_retries: further tries of a call that the server refuses as too many (429), or that fails by a timeout, a
            lost connection or a fault of the server, after waits that double.
        max_unreadable_retries: how often a question is asked again whose answer cannot be read, with a reminder of the
            form and, above temperature 0, another seed. Each counts as a call.
        max_concurrent: most calls at a time in the whole run; each process gets an equal part, and at least one.
        max_calls: calls of this judge after which the run ends; null: no limit. Further tries of a call are not
            counted, the question with which each start tries the server is. Of several machines each gets an equal
            part.
        max_total_tokens: tokens, of questions and answers, after which the run ends; null: no limit. Of several
            machines each gets an equal part.
        max_pixels: larger images are reduced to this many pixels (width x height) before the judge is sent them; 0: it
            is sent none. null: it gets them in the size that the policy sees.
        prompt_price: US dollars for a million tokens of questions, for the metric `cost`.
        completion_price: the same for answers.
        answers: file that keeps all answers by the content of their questions, so that none is paid for twice, and
            counts each judge's calls and tokens for its limits. null: `judge_answers.sqlite` in the run's folder.
            Further machines of a run have files of their own next to it, which end in `-1`, `-2`, ...
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    structured: bool = True
    max_tokens: int = 512
    token_limit: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    temperature: float | None = 0.0
    extra_body: dict[str, Any] | None = None
    extra_headers: dict[str, str] | None = None
    timeout: float = 60.0
    max_retries: int = 5
    max_unreadable_retries: int = 2
    max_concurrent: int = 64
    max_calls: int | None = None
    max_total_tokens: int | None = None
    max_pixels: int | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0
    answers: str | None = None

    def __post_init__(self) -> None:
        check_within(
            "[1, inf)",
            WHERE,
            max_tokens=self.max_tokens,
            max_concurrent=self.max_concurrent,
            max_calls=self.max_calls,
            max_total_tokens=self.max_total_tokens,
        )
        check_within("(0, inf)", WHERE, timeout=self.timeout)
        check_within(
            "[0, inf)",
            WHERE,
            max_retries=self.max_retries,
            temperature=self.temperature,
            max_unreadable_retries=self.max_unreadable_retries,
            max_pixels=self.max_pixels,
            prompt_price=self.prompt_price,
            completion_price=self.completion_price,
        )
        if not self.base_url.startswith(("http://", "https://")):
            raise UserError(f"{WHERE}.base_url: {self.base_url!r} is no address; give http://HOST:PORT/v1")
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise UserError(f"{WHERE}.api_key_env: the environment variable {self.api_key_env} is not set")
        problems = []
        for key, option in OPTIONS_OF_KEYS.items():
            if key in (self.extra_body or {}):
                if option:
                    remedy = f"use {option}"
                else:
                    remedy = "leave it out"
                problems.append(f"{WHERE}.extra_body: {key!r} is set by lit-rlvr; {remedy}")
        refuse_all(problems)


Read = Callable[[Question, str], Reply]
"""The reader of answers: it returns the fields of a judgement, or why there are none."""


class Answer(NamedTuple):
    """The answer to a question.

    Args:
        reply: the fields that the judge filled in, or why there are none.
        failed: no answer came.
        calls: how often the judge was asked; 0 = the answer was kept from an earlier call.
        seconds: the time that the calls took.
    """

    reply: Reply
    failed: bool = False
    calls: int = 0
    seconds: float = 0.0


class Call(NamedTuple):
    """A call of the server.

    Args:
        received: what it sent; None if the call failed.
        error: why the call failed; "" if it did not.
    """

    received: Received | None
    error: str = ""


class Client:
    """A client of a judge's server, which keeps the answers.

    Args:
        server: the server.
        judge: the reward's name; its calls, tokens and limits are its own.
    """

    path = "/chat/completions"

    def __init__(self, server: JudgeServer, judge: str) -> None:
        require("openai", "a judge")
        from openai import AsyncOpenAI

        from lit_rlvr.rewards.judges.whole_timeout import WholeTimeoutClient

        self.server = server
        self.judge = judge
        self._machine = 0
        self._machines = 1
        self._gone = Spent()  # by machines that this start of the run does not have
        self.answers = self._open(expanded(server.answers) if server.answers else ":memory:")
        self._slots = asyncio.Semaphore(server.max_concurrent)
        self._said_no_usage = False
        key = os.environ[server.api_key_env] if server.api_key_env else "none"
        self._openai = AsyncOpenAI(
            base_url=server.base_url,
            api_key=key,
            max_retries=server.max_retries,
            timeout=server.timeout,
            default_headers=server.extra_headers,
            http_client=WholeTimeoutClient(server.timeout),
        )

    @property
    def place(self) -> str:
        """The server and its model, for messages."""
        return f"judge {self.server.model!r} at {self.server.base_url}"

    def _open(self, path: str | Path) -> Answers:
        """Open this machine's file of answers, and take over what the other machines' files hold.

        Args:
            path: the first machine's file; ":memory:" = none.
        """
        server = f"{self.server.model} at {self.server.base_url}"
        if isinstance(path, str):
            return Answers(server, self.judge, path)
        others = machine_files(path)
        others.pop(self._machine, None)
        answers = Answers(server, self.judge, machine_file(path, self._machine))
        answers.copy_from([*others.values()])
        self._gone = answers.spent_in([file for machine, file in others.items() if machine >= self._machines])
        return answers

    def share(self, process: RunProcess) -> None:
        """Take this process's part of the limits, and its machine's file of answers."""
        self._machine = process.machine
        self._machines = process.machines
        self._slots = asyncio.Semaphore(max(1, self.server.max_concurrent // process.processes))
        if self.server.answers and process.machines > 1:
            self.answers = self._open(expanded(self.server.answers))

    def begin_run(self, folder: Path) -> None:
        """Keep answers in the run's folder, unless the options name a file; what was spent before counts there."""
        path = folder / "judge_answers.sqlite"
        if self.server.answers is None and self.answers.path != machine_file(path, self._machine):
            folder.mkdir(parents=True, exist_ok=True)
            if self.answers.path == ":memory:":
                before = self.answers.spent()
            else:
                before = Spent()
            self.answers = self._open(path)
            self.answers.spend(before)

    def connect(self, question: Question, read: Read) -> None:
        """Ask one question, with all that the others are asked with.

        Args:
            question: a question of the kind that the judge will be asked.
            read: the reader of its answer.

        Raises:
            UserError: the server does not answer, or what it says cannot be read.
        """
        answer = resolved(self._new_answer(question, read))
        if answer.failed:
            remedy = self._remedy(str(answer.reply))
            if question.has_images:
                remedy = f"if the judge takes no images, set `server.max_pixels: 0`; else {remedy}"
            raise UserError(f"{answer.reply}; {remedy}")
        if isinstance(answer.reply, str):
            raise UserError(
                f"{self.place}: {answer.reply}; this was the question at the start, asked {answer.calls} times. What "
                f"else may help: {self._other_remedies(answer.reply)}"
            )

    def _other_remedies(self, reason: str) -> str:
        """Return what may make an answer readable, besides what the reason names and what is set already."""
        remedies = []
        if not self.server.structured:
            remedies.append("server.structured: true")
        if "server.max_tokens" not in reason:
            remedies.append("a higher server.max_tokens")
        return ", ".join([*remedies, "another judge"])

    def _remedy(self, error: str) -> str:
        """Return what to do about a call that failed at the start."""
        if "Error code: 400" not in error and "Error code: 422" not in error:
            return "start the server, or mend base_url, model or api_key_env"
        return (
            "leave out of the request what the server does not take: `server.temperature: null`, "
            "`server.token_limit: max_tokens`, `server.structured: false`, or mend model or extra_body"
        )

    def ask(self, questions: Sequence[Question], read: Read, waiting: Waiting) -> list[Answer]:
        """Return the answers to questions, all of them different, in order.

        Args:
            questions: the questions.
            read: the reader of their answers.
            waiting: says how many have been answered, if that takes long.

        Raises:
            UserError: the budget is used up.
        """

        async def answer(number: int, question: Question) -> Answer:
            with waiting.judging(number):
                return await self._known_or_new(question, read)

        async def answers() -> list[Answer]:
            return await asyncio.gather(*(answer(*numbered) for numbered in enumerate(questions)))

        return resolved(answers())

    def request(self, question: Question, attempt: int = 0) -> dict[str, Any]:
        """Return all that a question's answer depends on.

        Args:
            question: the question.
            attempt: how often it was asked before, each time without an answer that can be read.
        """
        server = self.server
        reminder = REMINDER if attempt else ""
        request: dict[str, Any] = {
            "model": server.model,
            "messages": question.messages(reminder),
            server.token_limit: server.max_tokens,
        }
        if server.structured:
            request["response_format"] = question.response_format
        if server.temperature is not None:
            request["temperature"] = server.temperature
        if server.temperature:
            names = ("judge", question.text, attempt) if attempt else ("judge", question.text)
            request["seed"] = derive_seed(*names) % 2**31
        return request | (server.extra_body or {})

    async def _known_or_new(self, question: Question, read: Read) -> Answer:
        """Return the answer that is kept, or a new one, which is kept if it can be read."""
        request = self.request(question)
        kept = self.answers.get(request)
        if kept is not None:
            reply = read(question, kept)
            if not isinstance(reply, str):
                return Answer(reply)
            self.answers.drop(request)
        async with self._slots:
            return await self._new_answer(question, read, keeps=True)

    async def _new_answer(self, question: Question, read: Read, keeps: bool = False) -> Answer:
        """Ask a question until the answer can be read, at most `max_unreadable_retries` times more."""
        answer = Answer("")
        for attempt in range(1 + self.server.max_unreadable_retries):
            started = time.perf_counter()
            call = await self._call(self.request(question, attempt))
            seconds = answer.seconds + time.perf_counter() - started
            if call.received is None:
                return Answer(call.error, failed=True, calls=attempt + 1, seconds=seconds)
            reply = read(question, call.received.text)
            if isinstance(reply, str) and call.received.lack:
                reply = f"the judge's answer cannot be read: {call.received.lack}"
            answer = Answer(reply, calls=attempt + 1, seconds=seconds)
            if not isinstance(reply, str):
                if keeps:
                    self.answers.add(self.request(question), call.received.text)
                break
        return answer

    async def _call(self, request: dict[str, Any]) -> Call:
        """Call the server, unless the budget is used up; count what that costs."""
        from openai import APITimeoutError, OpenAIError

        self._begin_call()
        try:
            received = await self._receive(request)
        except (OpenAIError, *BROKEN) as error:
            cause = error.__cause__ if str(error) == "Connection error." else None
            if isinstance(error, APITimeoutError):
                cause = TimeoutError(
                    f"no whole answer within server.timeout={self.server.timeout:g} s, with up to "
                    f"{self.server.max_concurrent} calls at a time; lower server.max_concurrent for a slow server, or "
                    "raise the timeout"
                )
            return Call(None, f"{self.place}: {without_surrogates(first_line(cause or error))}")
        if received.tokens is None:
            self._report_no_usage()
        else:
            self.answers.spend(Spent(0, *received.tokens))
        return Call(received)

    async def _receive(self, request: dict[str, Any]) -> Received:
        """Return what the server sends, after further tries if that is broken although its status is good."""
        for attempt in range(self.server.max_retries):
            try:
                return await self.send(request)
            except BROKEN:
                await asyncio.sleep(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT))
        return await self.send(request)

    async def send(self, request: dict[str, Any]) -> Received:
        """Send a request, and read the reply."""
        from httpx2 import Response  # openai's

        response = await self._openai.post(self.path, body=request, cast_to=Response)
        return self.read_body(parse_body(response.text))

    def read_body(self, body: Any) -> Received:
        """Read a reply."""
        return read_chat(body)

    def _begin_call(self) -> None:
        """Count a call.

        Raises:
            UserError: the budget is used up.
        """
        max_calls = self._part(self.server.max_calls, self._gone.calls)
        max_tokens = self._part(self.server.max_total_tokens, self._gone.tokens)
        if self.answers.begin_call(max_calls, max_tokens):
            return
        spent = self.answers.spent()
        budget = {"max_calls": (spent.calls, max_calls), "max_total_tokens": (spent.tokens, max_tokens)}
        if self._machines > 1:
            whose = f"the part of each of {self._machines} machines"
        else:
            whose = "the budget"
        remedy = f"raise it, and {how_to_resume()}"
        if self.answers.path != ":memory:":
            remedy += ": no answer is paid for twice"
        problems = []
        for option, (used, limit) in budget.items():
            if limit is not None and used >= limit:
                problems.append(f"{WHERE}.{option}: {whose} is used up ({used} of {limit}); {remedy}")
        refuse_all(problems)

    def _part(self, limit: int | None, gone: int) -> int | None:
        """Return this machine's part of a limit, of which machines that are gone have used some."""
        if limit is None:
            return None
        return max(0, limit - gone) // self._machines

    def _report_no_usage(self) -> None:
        """Say once that the server does not count tokens.

        Raises:
            UserError: an option needs them.
        """
        server = self.server
        needing = {
            "max_total_tokens": server.max_total_tokens is not None,
            "prompt_price": server.prompt_price > 0,
            "completion_price": server.completion_price > 0,
        }
        problems = []
        for option, needs in needing.items():
            if needs:
                problems.append(
                    f"{WHERE}.{option}: {self.place} does not say how many tokens a call takes (`usage`); leave the "
                    "option out, and limit the calls with max_calls"
                )
        refuse_all(problems)
        if not self._said_no_usage:
            log.warning("%s does not say how many tokens a call takes (`usage`): they count as 0", self.place)
        self._said_no_usage = True

    def spent(self) -> dict[str, float]:
        """Return the calls, tokens and US dollars that the judge has spent.

        They are as many as if each machine had spent what this one has, because their mean over all processes is
        logged.
        """
        pairs = zip(self.answers.spent(), self._gone, strict=True)
        spent = Spent(*(own * self._machines + gone for own, gone in pairs))
        server = self.server
        dollars = spent.prompt_tokens * server.prompt_price + spent.completion_tokens * server.completion_price
        return {"calls": spent.calls, "tokens": spent.tokens, "cost": dollars / 1e6}
