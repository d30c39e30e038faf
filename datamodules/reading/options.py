"""Which rows of a data set are used: the options of `data.reading`."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlvr.common.arguments import check_within, option_group
from lit_rlvr.datamodules.reading.cells import Answers


@option_group("data.reading")
@dataclass(frozen=True)
class ReadingOptions:
    """Which rows of a data set are used, and how.

    Args:
        answers: meaning of a list of answers (or of the text of a list of texts): `any` of them is right, or one answer
            has to give `all` of them, joined by commas. With `object` the cell, a list or dict or JSON text of one, is
            the reference of a reward that reads it, as `sample.answer_object`.
        limit: train on at most this many rows, drawn by `seed` after the validation rows are held out.
        max_bad_rows: largest share of unusable rows (no answer, empty prompt, broken JSON line) in a file. They are
            skipped and counted up to this share; a file with more of them is refused.
        max_prompt_tokens: longer prompts are dropped, counted and reported, never truncated.
    """

    answers: Answers = "any"
    limit: int | None = None
    max_bad_rows: float = 0.1
    max_prompt_tokens: int = 512

    def __post_init__(self) -> None:
        check_within("[1, inf)", "data.reading", limit=self.limit, max_prompt_tokens=self.max_prompt_tokens)
        check_within("[0, 1]", "data.reading", max_bad_rows=self.max_bad_rows)
