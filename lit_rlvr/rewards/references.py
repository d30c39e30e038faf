"""Checks of a data set's references with the rewards of a run, before the first rollout."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lit_rlvr.errors import UserError, refuse_all
from lit_rlvr.rewards.base import Reward
from lit_rlvr.types import Completion, Sample

_log = logging.getLogger("lit_rlvr")

GOLD_SAMPLES = 32
"""Most samples whose references are judged as answers."""


def check_references(rewards: Sequence[Reward], samples: Sequence[Sample]) -> None:
    """Refuse samples whose reference a reward cannot read.

    Raises:
        UserError: a message for each reward, with the first such sample and the number of all.
    """
    refuse_all(problem for reward in rewards if (problem := _unreadable(reward, samples)))


def _unreadable(reward: Reward, samples: Sequence[Sample]) -> str:
    """Return what is wrong with the first reference that a reward cannot read, and how many there are; "" = none."""
    problems = []
    for sample in samples:
        try:
            reward.check_reference(sample)
        except UserError as error:
            where, text = sample.source or sample.id, " ".join(error.messages)
            problems.append(text if where in text else f"{where}: {text}")
    return f"{problems[0]} ({reward.name}: {len(problems)} of {len(samples)} rows)" if problems else ""


def warn_of_gold_answers(rewards: Sequence[Reward], samples: Sequence[Sample]) -> None:
    """Judge the references of some samples as answers; warn of each reward by which not all of them are right."""
    answered = [sample for sample in samples if sample.answer]
    chosen = answered[:: max(1, len(answered) // GOLD_SAMPLES)][:GOLD_SAMPLES]
    for reward in rewards:
        texts = [(reward.gold_completion(sample), sample) for sample in chosen]
        pairs = [(Completion(text, (), "stop"), sample) for text, sample in texts if text is not None]
        results = zip(pairs, reward.score(pairs) if pairs else [], strict=True)
        wrong = [pair for pair, result in results if result.correct is False or result.status in ("unjudged", "error")]
        if wrong:
            completion, sample = wrong[0]
            _log.warning(
                "reward %s: %d of %d references are not right when they are given as the answer; first, %s: %r; no "
                "completion may be right there", reward.name, len(wrong), len(pairs), sample.source or sample.id,
                completion.text[:200],
            )  # fmt: skip
