"""Pools a sentence-embedding model's hidden states to one vector, by the settings in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

POOLINGS = ("mean", "cls", "lasttoken")
_SUPPORTED = {"Transformer", "Pooling", "Normalize"}  # normalising does not change a cosine
_OLD_NAMES = {"mean_tokens": "mean", "cls_token": "cls"}


class Settings(NamedTuple):
    """The settings in a model's folder."""

    pooling: str = "mean"
    max_tokens: int | None = None


def read_settings(folder: Path) -> Settings:
    """The settings that sentence-transformers wrote; without them, the mean of all tokens.

    Raises:
        ValueError: the model needs something unsupported: another pooling, more layers, or a chat template.
    """
    modules = {str(m["type"]).rsplit(".", 1)[-1]: m["path"] for m in _read(folder / "modules.json") or []}
    more = sorted(modules.keys() - _SUPPORTED)
    if more:
        raise ValueError(f"its layer {more[0]} after the hidden states is not supported")
    config = _read(folder / modules.get("Pooling", "") / "config.json") or {} if modules else {}
    prefix = "pooling_mode_"  # one key per pooling, until version 5
    named = [key.removeprefix(prefix) for key, value in config.items() if key.startswith(prefix) and value]
    found = config.get("pooling_mode") or [_OLD_NAMES.get(name, name) for name in named] or "mean"
    how = found if isinstance(found, str) else " and ".join(found)
    if how not in POOLINGS:
        raise ValueError(f"its pooling {how} is not supported; {', '.join(POOLINGS)} are")
    reads = _read(folder / "sentence_bert_config.json") or {}
    if "message" in reads.get("modality_config", {}):
        raise ValueError("it reads a text as a message of a chat, which is not supported")
    return Settings(how, reads.get("max_seq_length"))


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """Sentence embeddings (b, H) from hidden states (b, L, H) of right-padded texts.

    Args:
        mask: (b, L), 1 = a token.
        how: one of `POOLINGS`.
    """
    if how == "cls":
        return hidden[:, 0]
    if how == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
