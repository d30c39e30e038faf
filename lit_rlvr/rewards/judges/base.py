"""The base class of rewards that ask a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_rlvr.common.log import log
from lit_rlvr.rewards.base import CheckedReward, RunProcess
from lit_rlvr.rewards.judges.images import as_urls, has_videos, image_urls
from lit_rlvr.rewards.judges.prompts import Question, Reply, Seen, ask_about
from lit_rlvr.rewards.judges.replies import Values
from lit_rlvr.rewards.judges.server import Answer, Client, JudgeServer, Read
from lit_rlvr.speech.prompts import prompt_text
from lit_rlvr.types import Completion, Pair, Sample
from lit_rlvr.workers.pool import Waiting

NO_IMAGES = (
    "reward %s: the judge sees no images and no videos, only their places in the text (first, %s); have the task or "
    "the reference answer say what is in them"
)
SAME = 200
"""Number of answers after which the run warns of a judge that always said the same."""
TRIAL: Pair = Completion.made_elsewhere("1", 1, "stop"), Sample("trial", "What is 1 + 0?", "1")
"""What the judge is asked about at the start."""


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

    Attributes:
        sends_images: its questions have the images of the row.
    """

    needs_answer = False
    sends_images = True
    default_task = ""
    client_class = Client

    def __init__(
        self,
        server: JudgeServer,
        task: str | None = None,
        has_reason: bool = True,
        sees_thoughts: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.client = self.client_class(JudgeServer(**server) if isinstance(server, dict) else server, self.name)
        if task is None:
            self.task = self.default_task
        else:
            self.task = task
        self.has_reason = has_reason
        self.sees_thoughts = sees_thoughts
        self._asked = 0
        self._said = set[str]()
        self._said_no_images = False
        self._most_images: Sample | None = None
        self._last_images: tuple[Sample | None, tuple[str, ...]] = (None, ())

    def set_process(self, process: RunProcess) -> None:
        self.client.share(process)

    def connect(self) -> None:
        self.client.connect(self.trial(), self.read)

    def begin_run(self, folder: Path) -> None:
        self.client.begin_run(folder)

    def check_reference(self, sample: Sample) -> None:
        """Say once that the judge does not see images or videos; take note of the row with the most images."""
        if not sample.images:
            return
        if self._sees_images_of(sample):
            if self._most_images is None or len(sample.images) > len(self._most_images.images):
                self._most_images = sample
        elif not self._said_no_images:
            self._said_no_images = True
            log.warning(NO_IMAGES, self.name, sample.source or sample.id)

    def _sees_images_of(self, sample: Sample) -> bool:
        return self.sends_images and self.client.server.max_pixels != 0 and not has_videos(sample)

    def images_of(self, sample: Sample) -> tuple[str, ...]:
        """Return the images of a row as the judge is sent them, each as a URL that holds it; () = it sees none."""
        if not sample.images or not self._sees_images_of(sample):
            return ()
        kept, urls = self._last_images  # read once: a validation may judge in another thread
        if kept is not sample:
            urls = image_urls(sample, self.client.server.max_pixels)
            self._last_images = sample, urls
        return urls

    def images_shown(self, completion: Completion) -> tuple[str, ...]:
        """Return the images that an environment showed in an episode, as the judge is sent them; () = it sees none."""
        max_pixels = self.client.server.max_pixels
        if completion.pixels is None or not self.sends_images or max_pixels == 0:
            return ()
        return as_urls(completion.pixels.images, max_pixels)

    @property
    def trial_pair(self) -> Pair:
        """What the judge is asked about at the start, with the images of the row that has the most."""
        completion, sample = TRIAL
        most = self._most_images
        if most is None:
            return TRIAL
        return completion, replace(sample, images=most.images, coordinates=most.coordinates)

    def trial(self) -> Question:
        """Return the question that tells at the start whether the judge answers."""
        completion, sample = self.trial_pair
        material = {"question": str(sample.prompt), "answer": completion.text}
        return ask_about(self.task, material, {"score": (0, 1)}, self.has_reason, self.images_of(sample))

    def text_of(self, pair: Pair) -> str:
        """Return the text that the judge sees of a completion."""
        return (pair[0].full_text if self.sees_thoughts else pair[0].answer).strip()

    def seen(self, pair: Pair) -> Seen:
        """Return all that the judge sees of a completion: its text, and the images that an environment showed."""
        return Seen(self.text_of(pair), self.images_shown(pair[0]))

    def compare(self, task: str, sample: Sample, answers: Mapping[str, Seen], fields: Mapping[str, Values]) -> Question:
        """Return a question about several answers to a row.

        Args:
            task: what to judge and how.
            sample: the row.
            answers: title -> what the judge sees of the answer.
            fields: field of the reply -> the values that it may have.
        """
        material = {"question": prompt_text(sample.told)} | {title: answer.text for title, answer in answers.items()}
        shown = {}
        for title, answer in answers.items():
            shown[title] = answer.images
        return ask_about(task, material, fields, self.has_reason, self.images_of(sample), shown)

    def questions_about(self, pairs: Sequence[Pair]) -> set[Question]:
        """Return the questions that judging these completions asks; ask none."""
        noted: Any = NotedQuestions(self.client.server)
        client = self.client
        metrics = self.metrics
        asked = self._asked
        said = self._said
        self.client = noted
        self.metrics = {}
        self._said = set()
        try:
            self.score(pairs)
        finally:
            self.client = client
            self.metrics = metrics
            self._asked = asked
            self._said = said
        return noted.questions

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Return what the judge says to questions, in order; equal ones are asked once.

        Log how it went; warn once of a judge that always says the same.
        """
        different = list(dict.fromkeys(questions))
        with Waiting(f"the judge of {self.name}", [""] * len(different)) as waiting:
            answers = self.client.ask(different, self.read, waiting)
        replies = {}
        for question, answer in zip(different, answers, strict=True):
            replies[question] = answer.reply
        for name, values in counts_of(answers).items():
            self.metrics.setdefault(f"{self.name}/{name}", []).extend(values)
        self.metrics |= {f"{self.name}/{name}": [value] for name, value in self.client.spent().items()}
        before = self._asked
        self._asked = self._asked + len(answers)
        self._said.update(map(str, replies.values()))
        if before < SAME <= self._asked and len(self._said) == 1:
            log.warning(
                "reward %s: the judge says %s to all of %d questions, which teaches nothing; change `task`, the rubric "
                "or the judge",
                self.name,
                *self._said,
                self._asked,
            )
        return [replies[question] for question in questions]

    def read(self, question: Question, answer: str) -> Reply:
        """Return the fields that the judge filled in, or why there are none."""
        return question.read(answer)


class NotedQuestions:
    """A client that notes questions instead of asking them.

    Args:
        server: the server that would be asked.
    """

    def __init__(self, server: JudgeServer) -> None:
        self.server = server
        self.questions: set[Question] = set()

    def ask(self, questions: Sequence[Question], read: Read, waiting: Waiting) -> list[Answer]:
        """Note questions; answer none of them."""
        self.questions.update(questions)
        return [Answer("not asked", failed=True) for _ in questions]

    def spent(self) -> dict[str, float]:
        """Return nothing, for nothing was spent."""
        return {}


def counts_of(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """Return what is logged of answers: for each, whether it was kept, failed, was asked again or cannot be read."""
    answered = [answer for answer in answers if not answer.failed]
    return {
        "cached": [float(answer.calls == 0) for answer in answers],
        "failed": [float(answer.failed) for answer in answers],
        "asked_again": [float(answer.calls > 1) for answer in answers],
        "unreadable": [float(isinstance(answer.reply, str)) for answer in answered],
        "seconds": [answer.seconds for answer in answers if answer.calls],
    }
