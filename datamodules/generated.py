"""Base class of generated data sets, which read no files."""

from __future__ import annotations

from typing import Any

from lit_rlvr.datamodules.base import PromptDataModule


class GeneratedDataModule(PromptDataModule):
    """Fixes the options that only data sets read from files need, so that generated ones do not offer them."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            train=None,
            validation=None,
            test=None,
            validation_split=None,
            columns=None,
            image_folder=None,
            min_pixels=None,
            max_pixels=None,
            max_bad_rows=0.0,
            **kwargs,
        )
