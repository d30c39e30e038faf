"""Average cosine similarity against values by hand and a loop over all pairs."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lit_rlvr.evaluation.diversity import CosineSimilarity, Embedder

VECTORS = {"east": [2.0, 0.0], "north": [0.0, 0.5], "west": [-1.0, 0.0], "north-east": [3.0, 3.0]}


class Table(Embedder):
    """Embeddings by hand."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([VECTORS[text] for text in texts])


def measured(*groups: Sequence[str]) -> float:
    metric = CosineSimilarity(Table())
    metric.update(groups)
    return float(metric.compute()["cosine_similarity"])


def test_the_cosine_is_the_hand_computed_one() -> None:
    assert measured(["east"] * 3) == pytest.approx(1)
    assert measured(["east", "north"]) == pytest.approx(0)
    assert measured(["east", "west"]) == pytest.approx(-1)
    root = 0.5**0.5
    assert measured(["east", "north", "north-east"]) == pytest.approx((0 + root + root) / 3)
    assert measured(["east", "west"], ["east"] * 4, ["north", "north-east"]) == pytest.approx((-1 + 1 + root) / 3)
