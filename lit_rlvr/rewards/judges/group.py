"""A whole group judged in one call: a score or a rank of each completion."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.log import log
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.rewards.base import groups_of
from lit_rlvr.rewards.judges.base import Judge
from lit_rlvr.rewards.judges.prompts import Question, Reply, Seen
from lit_rlvr.rewards.judges.rubric import NO_ANSWER
from lit_rlvr.speech.prompts import prompt_text
from lit_rlvr.types import Pair, RewardResult, Sample

Shown = tuple[Seen, ...]
"""The answers that a call shows, in order; one may stand in it twice."""


class Standing(NamedTuple):
    """What the judge says of an answer.

    Args:
        call: the number of the call in its group.
        mark: its score, or its rank below 0, so that more is better; a mean if it was shown twice.
        failure: why there is none; "" = there is one.
    """

    call: int
    mark: float
    failure: str = ""


class GroupJudge(Judge):
    """A judge's score or rank of every completion of a group, in one call for the whole group.

    With scores, the value is score / `highest`. With ranks, it is the share of the others that ended and that the
    completion is ranked above, a tie one half. The judge sees the different answers in an order that a seed shuffles.
    Equal answers share what it says, and empty ones get 0. It reports no `correct`: give another reward, too. With
    ranks, a completion that is alone in its group or call is not judged.

    Args:
        by: scores, from 0 to `highest`, or ranks, from 1, the best; equally good answers share one.
        highest: the highest score.
        max_characters: most characters of the answers in a call. A longer group is split into several calls, which a
            warning says and the metric `split` counts; ranks then compare the answers of a call.
        max_images: most images of environments in a call; a group with more is split as well.
        shown_twice: share of the calls that show one answer at two places, of which the metric `place_bias` is what the
            first one gains on the second. Its value is the mean of both.
        kwargs: `server` and the other options of `Judge`; `task` says what a good answer is.
    """

    reports_correct = False
    compares = True
    default_task = (
        "Compare answers to a question with one another. A good one is right, complete and to the point; its length "
        "and its place say nothing."
    )

    def __init__(
        self,
        by: Literal["scores", "ranks"] = "scores",
        highest: int = 10,
        max_characters: int = 40_000,
        max_images: int = 32,
        shown_twice: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_within("[1, 100]", "rewards.GroupJudge", highest=highest)
        check_within("[1, inf)", "rewards.GroupJudge", max_characters=max_characters, max_images=max_images)
        check_within("[0, 1]", "rewards.GroupJudge", shown_twice=shown_twice)
        self.by = by
        self.highest = highest
        self.max_characters = max_characters
        self.max_images = max_images
        self.shown_twice = shown_twice
        self._said_split = False

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        seen = [self.seen(pair) for pair in pairs]
        groups = groups_of(pairs)
        calls_of_groups = []
        questions = []
        for group in groups:
            sample = pairs[group[0]][1]
            calls = self.calls(sample, {seen[k] for k in group if seen[k].text})
            calls_of_groups.append(calls)
            for shown in calls:
                questions.append(self.question(sample, shown))
        replies = iter(self.ask(questions))
        results = [RewardResult(0.0, None, "unjudged")] * len(pairs)
        for group, calls in zip(groups, calls_of_groups, strict=True):
            standings: dict[Seen, Standing] = {}
            for number, shown in enumerate(calls):
                standings |= self.standings(number, shown, next(replies))
            for k in group:
                others = []
                for other in group:
                    if other != k:
                        others.append(seen[other])
                results[k] = self.result(seen[k], others, standings)
        return results

    def calls(self, sample: Sample, answers: Collection[Seen]) -> list[Shown]:
        """Return the answers that each call about a group shows.

        Args:
            sample: the row.
            answers: the different answers, none of them empty.
        """
        if self.by == "ranks" and len(answers) == 1:
            return []
        ordered = sorted(answers)
        texts = [answer.text for answer in ordered]
        chance = random.Random(derive_seed("group judge", prompt_text(sample.told), *texts))
        chance.shuffle(ordered)
        parts: list[list[Seen]] = []
        for answer in ordered:
            if not parts or not self._fits([*parts[-1], answer]):
                parts.append([])
            parts[-1].append(answer)
        is_split = len(parts) > 1
        self.metrics.setdefault(f"{self.name}/split", []).append(float(is_split))
        if self.by == "ranks":
            for before, part in pairwise(parts):
                if len(part) == 1 and len(before) > 2 and self._fits([before[-1], part[0]]):
                    part.append(before.pop())
            parts = [part for part in parts if len(part) > 1]  # an answer alone has nothing to be compared with
        if is_split and not self._said_split:
            self._said_split = True
            log.warning(
                "reward %s: the answers of a group have %d characters and %d images, more than max_characters=%d or "
                "max_images=%d, so they are judged in %d calls (first, %s)",
                self.name,
                sum(map(len, texts)),
                sum(len(answer.images) for answer in ordered),
                self.max_characters,
                self.max_images,
                len(parts),
                sample.source or sample.id,
            )
        for part in parts:
            if chance.random() < self.shown_twice:
                again = chance.choice(part)
                part.insert(chance.randrange(len(part) + 1), again)
        return [tuple(part) for part in parts]

    def _fits(self, answers: Sequence[Seen]) -> bool:
        """Return whether one call may show these answers."""
        characters = sum(len(answer.text) for answer in answers)
        images = sum(len(answer.images) for answer in answers)
        return characters <= self.max_characters and images <= self.max_images

    def trial(self) -> Question:
        completion, sample = self.trial_pair
        return self.question(sample, (Seen(completion.text), Seen("one")))

    def question(self, sample: Sample, shown: Shown) -> Question:
        """Return the question about some answers to a row."""
        answers = {}
        for number, answer in enumerate(shown, 1):
            answers[f"answer {number}"] = answer
        if self.by == "scores":
            name = "score"
            values = tuple(range(self.highest + 1))
            form = f"Score each answer from 0 to {self.highest}, the best. Equally good answers have the same score."
        else:
            name = "rank"
            values = tuple(range(1, len(shown) + 1))
            form = "Rank the answers from 1, the best. Equally good answers share a rank."
        fields = {}
        for number in range(1, len(shown) + 1):
            fields[f"{name}_{number}"] = values
        return self.compare(f"{self.task}\n{form}", sample, answers, fields)

    def standings(self, call: int, shown: Shown, reply: Reply) -> dict[Seen, Standing]:
        """Return what a reply says of each answer; log what the place of one that was shown twice does.

        Args:
            call: the number of the call in its group.
            shown: the answers.
            reply: the fields that the judge filled in, or why there are none.
        """
        if isinstance(reply, str):
            return {answer: Standing(call, 0.0, reply) for answer in shown}
        marks: dict[Seen, list[float]] = {}
        for answer, said in zip(shown, reply.values(), strict=True):
            mark = float(said)
            if self.by == "ranks":
                mark = -mark
            marks.setdefault(answer, []).append(mark)
        highest = self.highest
        if self.by == "ranks":
            highest = len(shown) - 1
        gains = []
        for found in marks.values():
            if len(found) > 1:
                gains.append((found[0] - found[1]) / highest)
        self.metrics.setdefault(f"{self.name}/place_bias", []).extend(gains)
        standings = {}
        for answer, found in marks.items():
            standings[answer] = Standing(call, sum(found) / len(found))
        return standings

    def result(self, answer: Seen, others: Sequence[Seen], standings: Mapping[Seen, Standing]) -> RewardResult:
        """Return the result of a completion.

        Args:
            answer: what the judge sees of it.
            others: the same of the other completions of its group.
            standings: answer -> what the judge says of it; without the only different one of a group that is ranked.
        """
        if not answer.text:
            return RewardResult(0.0, None, "parse_fail", NO_ANSWER)
        own = standings.get(answer, Standing(-1, 0.0))
        if own.failure:
            return RewardResult(0.0, None, "error", own.failure)
        if self.by == "scores":
            return RewardResult(own.mark / self.highest, detail=f"{own.mark:g} of {self.highest}")
        points = []
        for other in others:
            standing = standings.get(other)
            if not other.text:
                points.append(1.0)
            elif other == answer:
                points.append(0.5)
            elif standing is not None and standing.call == own.call:
                points.append(_point(own.mark, standing.mark))
        if not points:
            return RewardResult(0.0, None, "unjudged", "there is nothing to compare it with")
        return RewardResult(sum(points) / len(points), detail=f"{sum(points):g} of {len(points)} comparisons")


def _point(own: float, other: float) -> float:
    """Return what a comparison earns: 1 if it is won, 0.5 for a draw, 0."""
    if own > other:
        return 1.0
    if own == other:
        return 0.5
    return 0.0
