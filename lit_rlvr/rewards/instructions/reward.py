"""The reward of texts that follow the instructions of their row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean
from typing import Any

from lit_rlvr.common.arguments import check_within
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.rewards.base import CheckedReward
from lit_rlvr.rewards.instructions.language import require_packages
from lit_rlvr.rewards.instructions.rows import instructions_of
from lit_rlvr.rewards.instructions.verdict import Followed
from lit_rlvr.types import Completion, Pair, RewardResult, Sample
from lit_rlvr.workers.pool import shared_pool


class InstructionFollowing(CheckedReward):
    """A reward of 1 for a text that follows all instructions of its row, else 0; it reports `correct`.

    The instructions are those of IFEval, IFTrain, Tulu 3 and, with the package if-verifiable, IFBench. They stand in
    the columns `instruction_id_list` and `kwargs`, or are the answer, as in open-instruct's and Tulu 3's
    `ground_truth`. The text is what follows the thoughts. Both accuracies of the papers are logged, strict and loose,
    by prompt and by instruction.

    Args:
        loose: a text follows an instruction if it does so without its first line, its last line, both, or its
            asterisks.
        partial: the value is the share of the instructions that the text follows; `correct` still needs all.
        cpu_seconds: CPU time of one check; in a fresh worker, nltk takes some of it to load.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.

    Raises:
        UserError: a package of the extra `instructions` is not installed.
    """

    needs_answer = False

    def __init__(self, loose: bool = False, partial: bool = False, cpu_seconds: float = 20.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_within("(0, inf)", "rewards.InstructionFollowing", cpu_seconds=cpu_seconds)
        require_packages("rewards.InstructionFollowing")
        self.loose = loose
        self.partial = partial
        self.cpu_seconds = cpu_seconds

    def check_reference(self, sample: Sample) -> None:
        for instruction in instructions_of(sample):
            try:
                instruction.find_check()("a", **instruction.arguments)
            except (AttributeError, LookupError, TypeError, ValueError, re.error) as error:
                raise UserError(
                    f"{sample.source or sample.id}: the instruction {instruction.name} cannot be checked with "
                    f"{instruction.arguments} ({first_line(error)})"
                ) from error

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        arguments = []
        for completion, sample in pairs:
            arguments.append((_text_of(completion), instructions_of(sample)))
        outcomes = shared_pool().run(
            "lit_rlvr.rewards.instructions.verdict:check_instructions", arguments, cpu_seconds=self.cpu_seconds
        )
        results = []
        for outcome, (_, instructions) in zip(outcomes, arguments, strict=True):
            names = [instruction.name for instruction in instructions]
            if outcome.status == "ok":
                results.append(self._result(names, outcome.value))
            elif outcome.status == "error":
                results.append(RewardResult(0.0, None, "error", outcome.detail))
            else:
                none = self._result(names, [Followed(False, False)] * len(names))
                detail = f"{outcome.detail}; it counts as following none"
                results.append(replace(none, status=outcome.status, detail=detail))
        return results

    def _result(self, names: Sequence[str], followed: Sequence[Followed]) -> RewardResult:
        for mode in Followed._fields:
            values = []
            for given in followed:
                values.append(float(getattr(given, mode)))
            self.metrics.setdefault(f"{self.name}/prompt_{mode}", []).append(float(all(values)))
            self.metrics.setdefault(f"{self.name}/instruction_{mode}", []).extend(values)
        counted = []
        for given in followed:
            counted.append(given.loose if self.loose else given.strict)
        is_correct = all(counted)
        value = fmean(counted) if self.partial else float(is_correct)
        broken = []
        for name, is_followed in zip(names, counted, strict=True):
            if not is_followed:
                broken.append(name)
        detail = f"not followed: {', '.join(broken)}" if broken else ""
        return RewardResult(value, is_correct, "ok", detail, dict(_criteria(names, followed)))

    def summarise(self, criteria: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return accuracies(criteria)


def _text_of(completion: Completion) -> str:
    if completion.thoughts:
        return completion.answer.strip()
    return completion.answer


def _criteria(names: Sequence[str], followed: Sequence[Followed]) -> Iterator[tuple[str, float]]:
    """Yield a name and 1 or 0 for each instruction and mode."""
    for number, (name, given) in enumerate(zip(names, followed, strict=True), 1):
        for mode in Followed._fields:
            yield f"{mode} {number}. {name}", float(getattr(given, mode))


def accuracies(criteria: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the four accuracies of IFEval's paper from the criteria of completions; none without criteria.

    By prompt, a text counts if it follows all its instructions; by instruction, each instruction counts.
    """
    results = {}
    for mode in Followed._fields:
        by_prompt = []
        for row in criteria:
            if row:
                by_prompt.append([value for name, value in row.items() if name.startswith(f"{mode} ")])
        if by_prompt:
            results[f"prompt_{mode}"] = fmean(float(all(values)) for values in by_prompt)
            results[f"instruction_{mode}"] = fmean(chain.from_iterable(by_prompt))
    return results
