"""Attention within windows, all windows of a length at once, against one window at a time."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lit_rlvr.policy import vision_attention as ours

LENGTHS = [4, 16, 4, 9, 16, 1]


def one_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(1, T, heads, D)."""
    pieces = zip(*(x.split(LENGTHS, 2) for x in (q, k, v)), strict=True)
    return torch.cat([scaled_dot_product_attention(*piece, scale=0.3) for piece in pieces], 2).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_one_window_at_a_time(
    dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3, sum(LENGTHS), 80)  # 80: the head of Qwen2.5-VL's tower
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for _ in range(3))
    ends = torch.tensor([0, *LENGTHS], device=device).cumsum(0).int()
    calls: list[int] = []
    real = scaled_dot_product_attention
    monkeypatch.setattr(ours, "scaled_dot_product_attention", lambda *x, **y: (calls.append(1), real(*x, **y))[1])
    out, scores = ours.vision_attention(
        nn.Module(), q, k, v, None, scaling=0.3, cu_seq_lens_q=ends, max_length_q=max(LENGTHS), is_causal=False
    )
    assert scores is None and out.dtype == dtype
    assert len(calls) == (0 if device.type == "cuda" and dtype == torch.bfloat16 else len(set(LENGTHS)))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wanted = one_by_one(*exact)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), wanted, atol=tolerance, rtol=tolerance)
    grad = torch.randn(out.shape, generator=generator).to(device, dtype)
    found = torch.autograd.grad(out, (q, k, v), grad)
    for got, expected in zip(found, torch.autograd.grad(wanted, exact, grad.double()), strict=True):
        torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)
