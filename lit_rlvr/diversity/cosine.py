"""Average cosine similarity: how similar in meaning a prompt's completions are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_rlvr.diversity.base import DiversityMeasure, Group
from lit_rlvr.diversity.embedding import PACKAGED, Embedder, SentenceEmbedder


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

    def score(self, groups: Sequence[Group]) -> list[float | None]:
        if not groups:
            return []
        embeddings = self.embedder([text for group in groups for text in group])  # (N, D)
        return [mean_cosine(part) for part in embeddings.split([len(group) for group in groups])]


def mean_cosine(embeddings: Tensor) -> float:
    """Mean cosine over all pairs of rows of (n, D), n >= 2, from the length of the sum of the unit vectors."""
    units = torch.nn.functional.normalize(embeddings.double(), dim=1)
    n = len(units)
    return float((units.sum(0).square().sum() - units.square().sum()) / (n * (n - 1)))
