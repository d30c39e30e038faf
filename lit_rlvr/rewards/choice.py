"""The reward of multiple-choice answers: a letter, an option's text, yes or no."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from lit_rlvr.errors import UserError
from lit_rlvr.rewards.answers.find import final_answer, normalise
from lit_rlvr.rewards.base import Reward
from lit_rlvr.types import Completion, Pair, RewardResult, Sample

YES_NO = ("yes", "no")
_LETTER = re.compile(r"(?:option |choice )?\(?([a-j])(\)?[.:)]+|\)?$|\s)(.*)", re.DOTALL)


class Choice(Reward):
    """A reward of 1 for a completion that names the right option, else 0; it reports `correct`.

    The final answer is the content of the last `\\boxed{}` after the last `</think>`, else the content of `<answer>`
    tags, the text after "answer is", or the last line. It names an option by its letter ("B", "(b)", "B) liver",
    "option B"), by its whole text, or, for a yes-or-no question, by yes or no ("Yes, on the left"). An answer that
    names several options, or a letter with another option's text, names none: status "parse_fail".

    A sample is multiple-choice if its answer is the letter or the text of one of its `options` or, without options, a
    letter from A to J, yes or no.

    Args:
        boxed_only: only the last `\\boxed{}` counts as an answer.
        otherwise: the reward that judges samples that are not multiple-choice; without it they are an error.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

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
        if self.otherwise is not None and correct_option(sample) is None:
            return self.otherwise.gold_completion(sample)
        return f"\\boxed{{{sample.answer}}}"

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        right = correct_option(sample)
        if right is None:
            raise UserError(
                f"rewards.Choice: the answer {sample.answer!r} of {sample.source or sample.id} is neither a letter nor "
                "yes or no nor one of its options; set `otherwise` to the reward that judges such answers"
            )
        found = final_answer(completion.text, self.boxed_only)
        yes_or_no = not sample.options and normalise(sample.answer) in YES_NO
        options = match_yes_no(found, YES_NO) if yes_or_no else matching_options(found, sample.options)
        return RewardResult(float(right in options), right in options, "ok" if options else "parse_fail", found)

    def score(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        if self.otherwise is None:
            return super().score(pairs)
        others = [i for i, (_, sample) in enumerate(pairs) if correct_option(sample) is None]
        judged = dict(zip(others, self.otherwise.score([pairs[i] for i in others]), strict=True))
        return [judged[i] if i in judged else self._judge(*pair) for i, pair in enumerate(pairs)]

    def close(self) -> None:
        if self.otherwise is not None:
            self.otherwise.close()


def correct_option(sample: Sample) -> int | None:
    """Return the number of the right option, from 0; None if the sample is not multiple-choice."""
    answer = sample.answer.strip()
    if len(answer) == 1 and answer in ascii_uppercase[: len(sample.options) or 10]:
        return ascii_uppercase.index(answer)
    texts = [normalise(option) for option in sample.options or YES_NO]
    return texts.index(normalise(answer)) if normalise(answer) in texts else None


def matching_options(found: str, options: Sequence[str]) -> set[int]:
    """Return the numbers of the options that an answer names: one, several with the same text, or none.

    Args:
        found: the final answer.
        options: the options' texts; none = only letters are known.
    """
    answer, texts = normalise(found), [normalise(option) for option in options]
    letter = _LETTER.fullmatch(answer)
    if letter:
        number, mark, rest = ord(letter[1]) - ord("a"), letter[2], normalise(letter[3])
        if texts:
            fits = number < len(texts) and rest in ("", texts[number])
        else:
            fits = not rest or (not mark.isspace() and not re.search(r"\b[a-j][.:)]", rest))
        if fits:
            return {number}
    if set(texts) == set(YES_NO):
        return match_yes_no(found, texts)
    return {number for number, text in enumerate(texts) if answer and text == answer}


def match_yes_no(found: str, texts: Sequence[str]) -> set[int]:
    """Return the number of "yes" or "no" in `texts` if the answer begins with it and does not contain the other."""
    answer = normalise(found)
    given = set(re.findall(r"\b(yes|no)\b", answer))
    return {texts.index(word) for word in given if len(given) == 1 and re.match(rf"{word}\b", answer)}
