"""Diversity of the completions of one prompt, as torchmetrics that synchronise across processes."""

from lit_rlvr.evaluation.diversity.base import DiversityMeasure, measure_diversity
from lit_rlvr.evaluation.diversity.embedding import CosineSimilarity, Embedder, SentenceEmbedder
from lit_rlvr.evaluation.diversity.self_bleu import SelfBLEU4

__all__ = [
    "CosineSimilarity",
    "DiversityMeasure",
    "Embedder",
    "SelfBLEU4",
    "SentenceEmbedder",
    "measure_diversity",
]
