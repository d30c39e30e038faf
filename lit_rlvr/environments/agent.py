"""The settings of an agent: a program of its own that plays episodes through the run's HTTP endpoint."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from lit_rlvr.common.arguments import check_within
from lit_rlvr.environments.base import Environment
from lit_rlvr.errors import UserError
from lit_rlvr.types import Turn
from lit_rlvr.workers.process import Isolation

RESERVED_VARIABLES = (
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
    "LIT_RLVR_TASK",
)
"""Environment variables that the run sets for every agent."""


class Agent(Environment):
    """A program that plays episodes by itself: it calls the model through an HTTP endpoint that the run serves.

    Each episode is one process. It gets its task as JSON on its standard input and in the file that `LIT_RLVR_TASK`
    names, and the endpoint with a key of its own in `OPENAI_BASE_URL` and `OPENAI_API_KEY` (and `ANTHROPIC_...`). The
    episode ends with the process, or with `POST /v1/end`.

    With `workers`, each process plays one episode after another: for each it reads a line of JSON, the task with its
    `base_url` and `api_key`, and ends it by writing a line of JSON.

    Args:
        command: the program and its arguments, such as `python my_agent.py`; no shell reads it. `python` is the run's
            own, whether or not its environment is activated; give the path of another one.
        env: further environment variables of the program.
        timeout: seconds after which an episode is ended; it then has the reward 0.
        workers: number of processes that play one episode after another; 0 = each episode is a process.
        parallel: most episodes that are played at once, if each is a process.
        reports_reward: the program reports the reward of its episode: by `POST /v1/reward`, by `POST /v1/end`, or as
            `{"reward": 1.0}` in the last line of its output. Other rewards judge the transcript.
        rewards_turns: the program reports rewards of single messages, by `POST /v1/reward` with their `completion_id`;
            the episode's reward is then added to their sum.
        ignore: parameters of requests to ignore instead of refusing them, such as `temperature`.
        host: address of the endpoint.
        port: its port, and the next ones for further processes of the run; 0 = any free one.
        batch_seconds: how long a request waits for those of the other episodes, to be sampled together with them.
        cpu_seconds: CPU time of each process of the program, in whole seconds; that of workers has no limit, because
            they play many episodes.
        memory_mb: address space of each process of the program, in MiB.

    Raises:
        UserError: the command does not exist, or an option is invalid.
    """

    takes_row_templates = True

    def __init__(
        self,
        command: str | list[str],
        env: dict[str, str] | None = None,
        timeout: float = 120.0,
        workers: int = 0,
        parallel: int = 32,
        reports_reward: bool = True,
        rewards_turns: bool = False,
        ignore: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        batch_seconds: float = 0.5,
        cpu_seconds: int = 60,
        memory_mb: int = 4096,
    ) -> None:
        check_within("(0, inf)", "Agent", timeout=timeout)
        check_within("[0, inf)", "Agent", batch_seconds=batch_seconds, workers=workers)
        check_within("[0, 65535]", "Agent", port=port)
        check_within("[1, inf)", "Agent", parallel=parallel, cpu_seconds=cpu_seconds, memory_mb=memory_mb)
        super().__init__(Isolation(cpu_seconds=cpu_seconds, wall_seconds=timeout, memory_mb=memory_mb))
        if isinstance(command, str):
            self.command = shlex.split(command)
        else:
            self.command = list(command)
        if not self.command:
            raise UserError("Agent.command: it is empty; give the program and its arguments")
        if shutil.which(self.program[0]) is None:
            raise UserError(f"Agent.command: there is no program {self.command[0]!r}")
        self.code = [_digest(argument) for argument in self.command if os.path.isfile(argument)]
        self.env = dict(env or {})
        for name in RESERVED_VARIABLES:
            if name in self.env:
                raise UserError(f"Agent.env: the run sets {name} itself; leave it out")
        self.workers = workers
        self.parallel = workers or parallel
        self.reports_reward = reports_reward
        self.rewards_turns = rewards_turns
        self.ignore = tuple(ignore)
        self.host = host
        self.port = port
        self.batch_seconds = batch_seconds

    @property
    def program(self) -> list[str]:
        """The command with the path of the run's own Python for `python`."""
        if self.command[0] == "python":
            return [sys.executable, *self.command[1:]]
        return self.command

    @property
    def begins(self) -> bool:
        """True: an agent writes its prompts itself."""
        return True

    @property
    def has_reward(self) -> bool:
        return self.reports_reward

    def variables(self, url: str, key: str, task_file: str) -> Mapping[str, str]:
        """Return the environment variables of the process that plays one episode.

        Args:
            url: the endpoint's, without a path.
            key: the episode's.
            task_file: the file with its task.
        """
        values = (key, f"{url}/v1", key, url, task_file)
        return {**os.environ, **self.env, **dict(zip(RESERVED_VARIABLES, values, strict=True))}

    def step(self, turn: Turn) -> NoReturn:
        raise UserError("rollout.environment: Agent plays its episodes itself")


def _digest(path: str) -> str:
    """Return a digest of a file of the command, so that an evaluation is not continued with another program.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"Agent.command: {path} cannot be read: {error.strerror}") from error
