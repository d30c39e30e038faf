"""The reward of answers of a few words to open questions."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Any

from lit_rlvr.errors import UserError
from lit_rlvr.rewards.answers.find import final_answer, normalise
from lit_rlvr.rewards.base import Reward
from lit_rlvr.types import Completion, RewardResult, Sample


class OpenAnswer(Reward):
    """The F1 score of the answer's words with the reference's; it reports `correct`.

    The comparison ignores case, punctuation and articles, but not signs (-5, 1/2, C++); `correct` means the same words
    in the same order. The final answer is that of `Choice`. Source: Rajpurkar et al. 2016 (SQuAD), the usual score of
    medical open questions.

    Args:
        exact: the reward is 1 for exactly the reference's words and 0 otherwise, without partial credit.
        boxed_only: only the last `\\boxed{}` counts as an answer.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

    def __init__(self, exact: bool = False, boxed_only: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.exact = exact
        self.boxed_only = boxed_only

    def gold_completion(self, sample: Sample) -> str:
        return f"\\boxed{{{sample.answer}}}"

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        found = final_answer(completion.text, self.boxed_only)
        predicted, expected = words(found), words(sample.answer)
        if not expected:
            raise UserError(
                f"rewards.OpenAnswer: the answer {sample.answer!r} of {sample.source or sample.id} has no words, "
                "numbers or signs to compare with; give another answer, or leave the row out"
            )
        correct = bool(predicted) and predicted == expected
        value = float(correct) if self.exact else f1(predicted, expected)
        return RewardResult(value, correct, "ok" if predicted else "parse_fail", found)


_WORD = re.compile(
    r"(?:(?<!\w)[-+](?=\.?\d))?"  # a sign
    r"(?:(?<!\w)\.(?=\d))?\w+(?:(?<=\d)[./:^-](?=\d)\w+)*"  # a word, or a number with its parts
    r"(?:[-+#]+(?!\w))?"  # C++, C#, O-
    r"|[^\w\s]"
)


def words(text: str) -> list[str]:
    """Return lower-case words, numbers ("0.5", "-5" and "1/2" are one each) and signs, without markup and the articles
    a, an, the."""
    found = _WORD.findall(normalise(text).replace("\N{MINUS SIGN}", "-"))
    signs = ("Sm", "Sc")
    words = [
        word for word in found if word.isalnum() or len(word) > 1 or unicodedata.category(word) in signs or word in "%#"
    ]
    return [word for word in words if word not in ("a", "an", "the")]


def f1(predicted: list[str], expected: list[str]) -> float:
    """Return the harmonic mean of precision and recall of bags of words; 0 if they share no word."""
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected)) if shared else 0.0
