"""The base class of generated data sets, which read no files."""

from __future__ import annotations

from typing import Any

from lit_rlvr.datamodules.base import PromptDataModule
from lit_rlvr.datamodules.reading.images import ImageOptions
from lit_rlvr.datamodules.reading.options import ReadingOptions


class GeneratedDataModule(PromptDataModule):
    """The base of generated data sets: it hides the options that only files need."""

    has_answer_lists = False

    def __init__(self, reading: ReadingOptions = ReadingOptions(max_bad_rows=0.0), **kwargs: Any) -> None:  # noqa: B008
        super().__init__(
            train=None,
            validation=None,
            test=None,
            validation_split=None,
            columns=None,
            reading=reading,
            images=ImageOptions(),
            **kwargs,
        )
