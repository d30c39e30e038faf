"""Loads data sets from the Hugging Face hub."""

from __future__ import annotations

import re
from typing import Any

from lit_rlvr.errors import UserError

NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<config>[\w.-]+))?(:(?P<split>.+))?")
"""`name` or `org/name`, `@config`, `:split`."""


def load_from_hub(location: str, split: str) -> Any:
    """A `datasets.Dataset`, downloaded or from the local cache.

    Args:
        location: a name that `NAME` matches.
        split: the split to load if the location names none.

    Raises:
        UserError: loading failed; the message gives the reason.
    """
    import datasets
    from huggingface_hub import HfApi

    match = NAME.fullmatch(location)
    assert match is not None
    try:
        if not _is_cached(match["name"], datasets.config.HF_DATASETS_CACHE):
            # one quick request: without a network, `load_dataset` retries for half a minute
            HfApi().dataset_info(match["name"], timeout=10)
        return datasets.load_dataset(match["name"], match["config"], split=match["split"] or split)
    except Exception as error:  # network, access, missing config or split: every cause is reported
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{location}: neither a file or folder here nor a reachable hub data set ({type(error).__name__}: {reason})"
        ) from error


def _is_cached(name: str, cache: Any) -> bool:
    """Whether `datasets` has a folder of this name in its cache."""

    def bare(text: str) -> str:
        return text.lower().replace("_", "")

    return cache.is_dir() and bare(name.replace("/", "___")) in {bare(folder.name) for folder in cache.iterdir()}
