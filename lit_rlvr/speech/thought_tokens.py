"""The tokens of thoughts, counted among those that the model sampled: a text has no certain number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from lit_rlvr.speech.thoughts import CLOSING_MARKS, thought_spans

PART_OF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""What the text of a token has that holds only some bytes of a character."""
LONGEST_CHARACTER = 4
"""Most tokens of a character: it has at most so many bytes."""


class ThoughtTokens(NamedTuple):
    """The thoughts of a completion.

    Args:
        tokens: how many of its sampled tokens lie between the marks of thoughts.
        are_closed: True if the engine wrote the mark that ends them (`max_thought_tokens`).
    """

    tokens: int
    are_closed: bool


class TokenTexts:
    """The texts of tokens.

    Args:
        tokenizer: decodes them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[tuple[int, ...], str] = {}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens together."""
        return str(self._tokenizer.decode(list(token_ids)))

    def of(self, token_ids: tuple[int, ...]) -> str:
        """Return the text of few tokens together, which is decoded once."""
        if token_ids not in self._texts:
            self._texts[token_ids] = self.decode(token_ids)
        return self._texts[token_ids]

    def pieces(self, token_ids: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Yield (number of tokens, text) of each piece of a text: one token, or those that share a character."""
        place = 0
        while place < len(token_ids):
            number = self._sharing(token_ids, place)
            yield number, self.of(tuple(token_ids[place : place + number]))
            place += number

    def _sharing(self, token_ids: Sequence[int], place: int) -> int:
        """Return how many tokens from a place on make whole characters together; 1 if none do."""
        for number in range(1, LONGEST_CHARACTER + 1):
            if PART_OF_A_CHARACTER not in self.of(tuple(token_ids[place : place + number])):
                return number
        return 1


def count_thought_tokens(
    texts: TokenTexts, token_ids: Sequence[int], from_model: Sequence[bool], prefill: str
) -> ThoughtTokens:
    """Return the thoughts among the tokens of a completion.

    Tokens that the model did not sample separate the turns of an episode, except the mark that ends thoughts.

    Args:
        texts: the texts of tokens.
        token_ids: the tokens of a completion, or of an episode.
        from_model: for each token, True if the model sampled it.
        prefill: the text that every turn continues.
    """
    count = start = 0
    turn: list[int] = []
    are_closed = False
    for is_sampled, run in groupby(from_model):
        end = start + len(list(run))
        if is_sampled:
            turn += token_ids[start:end]
        elif texts.decode(token_ids[start:end]).strip() in CLOSING_MARKS:
            turn += token_ids[start:end]
            are_closed = True
        else:
            count += _count_in_turn(texts, turn, prefill)
            turn = []
        start = end
    return ThoughtTokens(count + _count_in_turn(texts, turn, prefill), are_closed)


def _count_in_turn(texts: TokenTexts, token_ids: Sequence[int], prefill: str) -> int:
    """Return how many tokens of a turn lie between the marks of thoughts, without blanks next to the marks."""
    pieces = list(texts.pieces(token_ids))
    spans = thought_spans(prefill + "".join(text for _, text in pieces))
    count = 0
    place = len(prefill)
    for number, text in pieces:
        end = place + len(text)
        if any(first <= place and end <= last for first, last in spans):
            count += number
        place = end
    return count
