"""The reward of multiple-choice answers: a letter, an option's text, yes or no."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlvr.answers.choices import YES_NO_OPTIONS, named_options, referenced_options
from lit_rlvr.answers.find import find_answer, normalise
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import Reward
from lit_rlvr.types import Completion, Pair, RewardResult, Sample


class Choice(Reward):
    """A reward of 1 for a completion that names the right option, else 0; it reports `correct`.

    The answer is the content of the last `\\boxed{}` or, without one, of the last `<answer>` tag after the last
    `</think>`. Without both it is the line after the last "answer is", the last line, or the first one. It names an
    option in one of these forms:

    - its letter ("B", "(b)", "B) liver", "option B"), also in a sentence and with an explanation after it ("The answer
      is B, since dogs bark", "I choose B because A is too small");
    - its whole text, also after an article or with an explanation after it;
    - yes or no at the beginning ("Yes, on the left"), for a yes-or-no question.

    An answer that names several options, a letter with another option's text, or a letter after "not" names none:
    status "parse_fail". The article in "A dog" is no letter.

    A sample is multiple-choice if each of its references is the letter ("B", "(B)", "B) liver", "Option B") or the text
    of one of its `options` or, without options, a letter from A to J, yes or no.

    Args:
        boxed_only: only the last `\\boxed{}` counts as an answer.
        otherwise: the reward that judges samples that are not multiple-choice; without it they are an error.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

    reports_correct = True

    def __init__(
        self,
        boxed_only: bool = False,
        otherwise: Reward | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.boxed_only = boxed_only
        self.otherwise = otherwise

    def gold_completion(self, sample: Sample) -> str | None:
        if self.otherwise is not None and not correct_options(sample):
            return self.otherwise.gold_completion(sample)
        return f"\\boxed{{{sample.answer}}}"

    def check_reference(self, sample: Sample) -> None:
        unread = next((answer for answer in sample.references if not _options(answer, sample)), None)
        if unread is not None and self.otherwise is not None:
            self.otherwise.check_reference(sample)
        elif unread is not None:
            raise UserError(
                f"rewards.Choice: the answer {unread!r} of {sample.source or sample.id} is neither a letter nor yes or "
                "no nor one of its options; correct it, or set `otherwise` to the reward that judges such answers"
            )

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        self.check_reference(sample)
        named = named_options(completion.full_text, self.boxed_only, *_texts(sample))
        correct = bool(named & correct_options(sample))
        answer = find_answer(completion.full_text, self.boxed_only).text
        return RewardResult(float(correct), correct, "ok" if named else "parse_fail", answer)

    def score(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        if self.otherwise is None:
            return super().score(pairs)
        others = []
        for i, (_, sample) in enumerate(pairs):
            if not correct_options(sample):
                others.append(i)
        judged = dict(zip(others, self.otherwise.score([pairs[i] for i in others]), strict=True))
        results = []
        for i, pair in enumerate(pairs):
            if i in judged:
                results.append(judged[i])
            else:
                results.append(self._judge(*pair))
        return results

    def close(self) -> None:
        if self.otherwise is not None:
            self.otherwise.close()


def correct_options(sample: Sample) -> frozenset[int]:
    """Return the numbers of the right options, from 0; none if a reference is no option, or the sample has none."""
    options = []
    for answer in sample.references:
        options.append(_options(answer, sample))
    if all(options):
        return frozenset().union(*options)
    return frozenset()


def _options(reference: str, sample: Sample) -> frozenset[int]:
    return referenced_options(reference, *_texts(sample))


def _texts(sample: Sample) -> tuple[tuple[str, ...], bool]:
    """Return the texts that name an option, and whether letters do, too."""
    is_yes_no = not sample.options and normalise(sample.answer) in YES_NO_OPTIONS
    if is_yes_no:
        return (YES_NO_OPTIONS, False)
    return (sample.options, True)
