"""The reward of answers of a few words to open questions."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from lit_rlvr.answers.find import find_answer, normalise
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import Reward
from lit_rlvr.types import Completion, RewardResult, Sample


class OpenAnswer(Reward):
    """The F1 score of the answer's words with the reference's, the best of several; it reports `correct`.

    The comparison ignores case, punctuation and articles, but not signs (-5, 1/2, C++); `correct` means the same words
    in the same order. `words` below says which a, an and the are articles; those of "hepatitis A" and "A positive" are
    not. The final answer is `find_answer`'s. Source: Rajpurkar et al. 2016 (SQuAD), the usual score of medical open
    questions.

    Args:
        exact: the reward is 1 for exactly the reference's words and 0 otherwise, without partial credit.
        boxed_only: only the last `\\boxed{}` counts as an answer.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

    reports_correct = True

    def __init__(self, exact: bool = False, boxed_only: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.exact = exact
        self.boxed_only = boxed_only

    def gold_completion(self, sample: Sample) -> str:
        return f"\\boxed{{{sample.answer}}}"

    def check_reference(self, sample: Sample) -> None:
        for answer in sample.references:
            if not words(answer):
                raise UserError(
                    f"rewards.OpenAnswer: the answer {answer!r} of {sample.source or sample.id} has no words, numbers "
                    "or signs to compare with; give another answer, or leave the row out"
                )

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        self.check_reference(sample)
        text = find_answer(completion.full_text, self.boxed_only).text
        predicted = words(text)
        references = [words(answer) for answer in sample.references]
        correct = any(same_words(predicted, expected) for expected in references)
        if correct:
            value = 1.0
        elif self.exact:
            value = 0.0
        else:
            value = max(f1(predicted, expected) for expected in references)
        return RewardResult(value, correct, "ok" if predicted else "parse_fail", text)


class Word(NamedTuple):
    """A word, number or sign of an answer, and whether it is an article."""

    text: str
    is_article: bool = False


_WORD = re.compile(
    r"(?:(?<!\w)[-+](?=\.?\d))?"  # a sign
    r"(?:(?<!\w)\.(?=\d))?\w+(?:(?<=\d)[./:^-](?=\d)\w+)*"  # a word, or a number with its parts
    r"(?:[-+#]+(?!\w))?"  # C++, C#, O-
    r"|[^\w\s]"
)
_CAPITAL_INSIDE = re.compile(r"(?<=\w)(\s+)A(?=\s+\w)")  # "vitamin A deficiency"
_LABEL = "A_"  # what `words` writes for it
_LABELLED = r"\s+(?:pos|positive|neg|negative|major|minor|flat|sharp|level)\b"  # blood, keys, exams
_ARTICLE = re.compile(rf"(?:an|the|a(?!{_LABELLED}))(?=\s+\w)")


def words(text: str) -> list[Word]:
    """Return lower-case words, numbers ("0.5", "-5" and "1/2" are one each) and signs, without markup.

    A, an and the are articles before a space and a word, except a capital A after a word ("vitamin A deficiency") and
    the A of blood groups and keys ("A positive", "A minor").
    """
    if not text.isupper():
        text = _CAPITAL_INSIDE.sub(rf"\1{_LABEL}", text)
    text = normalise(text).replace("\N{MINUS SIGN}", "-")
    words = []
    for match in _WORD.finditer(text):
        word = match[0]
        is_sign = len(word) == 1 and not word.isalnum()
        if is_sign and unicodedata.category(word) not in ("Sm", "Sc") and word not in "%#":
            continue  # punctuation
        if word == _LABEL.lower():
            word = "a"
        words.append(Word(word, bool(_ARTICLE.match(text, match.start()))))
    return words


def same_words(predicted: Sequence[Word], expected: Sequence[Word]) -> bool:
    """Return True if two answers have the same words in the same order; articles may be missing."""
    place = 0
    for word in predicted:
        while place < len(expected) and expected[place].text != word.text and expected[place].is_article:
            place += 1
        if place < len(expected) and expected[place].text == word.text:
            place += 1
        elif not word.is_article:
            return False
    return bool(predicted) and all(word.is_article for word in expected[place:])


def f1(predicted: Sequence[Word], expected: Sequence[Word]) -> float:
    """Return the harmonic mean of precision and recall of bags of words without articles; 0 if they share none."""
    said = Counter(word.text for word in predicted if not word.is_article)
    wanted = Counter(word.text for word in expected if not word.is_article)
    shared = (said & wanted).total()
    if shared:
        return 2 * shared / (said.total() + wanted.total())
    return 0.0
