"""Diversity of the completions of one prompt: torchmetrics that are right under distributed synchronisation."""

from lit_rlvr.diversity.base import DiversityMeasure, measure_diversity
from lit_rlvr.diversity.self_bleu import SelfBLEU4

__all__ = [
    "DiversityMeasure",
    "SelfBLEU4",
    "measure_diversity",
]
