"""The base class of rewards that ask a judge."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_rlvr.rewards.base import CheckedReward
from lit_rlvr.rewards.judges.prompts import Question
from lit_rlvr.rewards.judges.server import Answer, Client, JudgeServer
from lit_rlvr.types import Pair, RewardResult
from lit_rlvr.workers.pool import Waiting

_log = logging.getLogger("lit_rlvr")

SAME = 200
"""Number of judgements after which a judge that always gave the same value is named."""

Reply = dict[str, Any] | str
"""The fields that a judge filled in, or why there are none."""


class Judge(CheckedReward):
    """A reward by another model on an OpenAI-compatible server.

    A completion on which a call fails, or whose answer cannot be read, has status "error": it is out of the loss and
    counts in `max_failure_rate`.

    Args:
        server: the judge.
        task: what to judge and how, the beginning of the judge's instructions; null: the class's.
        has_reason: the judge writes a reason before its judgement, which is better and takes more tokens.
        sees_thoughts: it sees the completion's thoughts, too.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

    default_task = ""

    def __init__(
        self,
        server: JudgeServer,
        task: str | None = None,
        has_reason: bool = True,
        sees_thoughts: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.client = Client(JudgeServer(**server) if isinstance(server, dict) else server)
        self.task = self.default_task if task is None else task
        self.has_reason, self.sees_thoughts = has_reason, sees_thoughts
        self._values: list[float] = []  # the first ones, while they are equal

    def connect(self) -> None:
        self.client.connect()

    def begin_run(self, folder: Path) -> None:
        self.client.begin_run(folder)

    def begin_rollout(self, step: int, max_steps: int) -> None:
        self.metrics = {name: [] for name in self.metrics}

    def close(self) -> None:
        self.client.answers.close()

    @abstractmethod
    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]: ...

    def text_of(self, pair: Pair) -> str:
        """Return what the judge sees of a completion."""
        completion, _ = pair
        return (completion.full_text if self.sees_thoughts else completion.answer).strip()

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Return what the judge says to questions, in order; log how it went."""
        different = list(dict.fromkeys(questions))
        with Waiting(self.dotted_path, ["the judge"]) as waiting, waiting.judging(0):
            answers = self.client.ask(different)
        replies = {question: _read(question, answer) for question, answer in zip(different, answers, strict=True)}
        for answer, reply in zip(answers, replies.values(), strict=True):
            self._log("cached", answer.seconds is None)
            self._log("failed", bool(answer.error))
            if not answer.error:
                self._log("unreadable", isinstance(reply, str))
            if answer.seconds is not None:
                self._log("seconds", answer.seconds)
        spent = self.client.answers.spent()
        tokens = spent.prompt_tokens + spent.completion_tokens
        for name, value in {"calls": spent.calls, "tokens": tokens, "cost": self.client.cost()}.items():
            self.metrics[f"{self.name}/{name}"] = [float(value)]
        return [replies[question] for question in questions]

    def _log(self, name: str, value: float) -> None:
        self.metrics.setdefault(f"{self.name}/{name}", []).append(float(value))

    def warn_of_same(self, results: Sequence[RewardResult]) -> None:
        """Warn once of a judge that always gives the same value."""
        values = [result.value for result in results if result.status == "ok"]
        if len(self._values) < SAME <= len(self._values) + len(values) and len({*self._values, *values}) == 1:
            _log.warning(
                "reward %s: all of the first %d judgements are %g, so nothing is learnt from them; look at the judge's "
                "task, or take another judge", self.name, len(self._values) + len(values), values[0],
            )  # fmt: skip
        self._values = [*self._values, *values]


def _read(question: Question, answer: Answer) -> Reply:
    if answer.error:
        return answer.error
    try:
        return question.read(answer.text)
    except ValueError as error:
        return f"the judge's answer cannot be read: {error}"
