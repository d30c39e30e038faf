"""Which tokens of a step M2PO keeps: as many as its bound allows, whatever the largest value is."""

import pytest
import torch
from torch import Tensor

from lit_rlvr.algorithms import M2PO
from lit_rlvr.objectives import StepTokens


def moments(tokens: StepTokens) -> Tensor:
    return (tokens.old_logp - tokens.rollout_logp).square()


@pytest.mark.parametrize("outlier", [0.0, 3.0, 100.0])
def test_m2po_keeps_its_bound_and_as_many_tokens_as_it_takes(outlier: float) -> None:
    old, off, *others = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = StepTokens(old, old + 0.25 * off, *others)
    tokens.rollout_logp[11] = tokens.old_logp[11] - outlier
    kept = M2PO(threshold=0.04).select_tokens(tokens)
    means = moments(tokens).sort().values.cumsum(0) / torch.arange(1, 4001)
    assert moments(tokens)[kept].mean() < 0.04 and int(kept.sum()) == int((means < 0.04).sum()) < 4000
    assert moments(tokens)[kept].max() < moments(tokens)[~kept].min()
