"""Comparisons as rewards: the rate at which a completion wins against the others of its group."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from lit_rlvr.rewards.base import groups_of
from lit_rlvr.rewards.judges.base import Judge
from lit_rlvr.rewards.judges.prompts import Question, Seen
from lit_rlvr.types import Pair, RewardResult, Sample

POINTS = {"A": 1.0, "B": 0.0, "tie": 0.5}
"""The judgement -> the points of the answer that is shown first."""


class PairwiseJudge(Judge):
    """The share of a completion's comparisons with the others of its group that it wins; a tie counts one half.

    The judge sees each two in both orders, so that its liking for the first one evens out: G * (G - 1) calls for a
    group of G. Equal answers tie and empty ones lose without a call. It reports no `correct`: give another reward, too.
    A completion that is alone in its group is not judged, and a truncated one, with `truncated_is_wrong`, gets 0 and is
    not compared.

    Args:
        kwargs: `server` and the other options of `Judge`; `task` says which answer is better.
    """

    reports_correct = False
    compares = True
    default_task = (
        "Compare two answers to a question. The better one is right, complete and to the point; its length and its "
        "place say nothing."
    )

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        matches: list[tuple[int, int]] = []
        for group in groups_of(pairs):
            matches.extend(combinations(group, 2))
        seen = [self.seen(pair) for pair in pairs]
        orders = []
        questions = []
        for a, b in matches:
            if seen[a].text and seen[b].text and seen[a] != seen[b]:
                orders += [(a, b), (b, a)]
                questions.append(self.question(pairs[a][1], seen[a], seen[b]))
                questions.append(self.question(pairs[b][1], seen[b], seen[a]))
        replies = dict(zip(orders, self.ask(questions), strict=True))
        points: list[list[float]] = [[] for _ in pairs]
        failures: list[list[str]] = [[] for _ in pairs]
        for a, b in matches:
            if (a, b) not in replies:
                if seen[a].text == seen[b].text:
                    won = 0.5
                else:
                    won = float(bool(seen[a].text))
                points[a].append(won)
                points[b].append(1 - won)
                continue
            forth = replies[a, b]
            back = replies[b, a]
            if isinstance(forth, str) or isinstance(back, str):  # one order alone would pay for the place
                if isinstance(forth, str):
                    failed = forth
                else:
                    failed = str(back)
                failures[a].append(failed)
                failures[b].append(failed)
            else:
                won = (POINTS[forth["better"]] + 1 - POINTS[back["better"]]) / 2
                points[a].append(won)
                points[b].append(1 - won)
        return [result_of(*judged) for judged in zip(points, failures, strict=True)]

    def trial(self) -> Question:
        completion, sample = self.trial_pair
        return self.question(sample, Seen(completion.text), Seen("one"))

    def question(self, sample: Sample, first: Seen, second: Seen) -> Question:
        """Return the question which of two answers to a row is better."""
        answers = {"answer A": first, "answer B": second}
        return self.compare(self.task, sample, answers, {"better": tuple(POINTS)})


def result_of(points: Sequence[float], failures: Sequence[str]) -> RewardResult:
    """Return the result of a completion: the mean of its points, if at most half of its comparisons failed.

    Args:
        points: the points against each opponent, over both orders.
        failures: why others could not be compared.
    """
    if len(failures) > len(points):
        return RewardResult(0.0, None, "error", failures[0])
    if not points:
        return RewardResult(0.0, None, "unjudged")
    return RewardResult(sum(points) / len(points), detail=f"{sum(points):g} of {len(points)} comparisons")
