"""Log-probabilities, entropies and their gradients against plain softmax by autograd."""

from collections.abc import Callable

import pytest
import torch
from tiny import plain_divergence
from torch import Tensor

from lit_rlvr.policy import logprobs as scoring
from lit_rlvr.policy.architecture import LogitTransform
from lit_rlvr.policy.logprobs import TeacherHead, score_tokens
from lit_rlvr.sampling import Sampling

N, H, V = 7, 5, 23
SAMPLINGS = pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.6), Sampling(banned_token_ids=(0, 22)), Sampling(0.7, banned_token_ids=(22,))],
)


def plain(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    sampling: Sampling,
    scale: float = 1.0,
    cap: float | None = None,
) -> list[Tensor]:
    """The definitions, with all logits in memory."""
    logits = torch.nn.functional.linear(hidden, weight, bias) * scale
    logits = (logits if cap is None else torch.tanh(logits / cap) * cap) / sampling.temperature
    kept = [v for v in range(V) if v not in sampling.banned_token_ids]
    logp = logits[:, kept].log_softmax(-1)
    at = torch.tensor([kept.index(int(t)) for t in target], device=logp.device)
    return [logp[torch.arange(N, device=logp.device), at], -(logp.exp() * logp).sum(-1)]


def numbers(bias: bool, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    torch.manual_seed(3)
    made = [torch.randn(*shape, dtype=torch.float64).to(device) for shape in ((N, H), (V, H), (V,))]
    hidden, weight, offset = (x.requires_grad_() for x in made)
    return hidden, weight, offset if bias else None, torch.randint(1, V - 1, (N,)).to(device)


@SAMPLINGS
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("chunk", "block", "kept"), [(1 << 25, 1 << 21, 1 << 29), (2 * V, V, 1 << 29), (5 * V, 2 * V, 0)]
)
def test_values_and_gradients_are_those_of_the_softmax(
    sampling: Sampling,
    bias: bool,
    chunk: int,
    block: int,
    kept: int,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
) -> None:
    monkeypatch.setattr(scoring, "GPU_ROWS", 1)
    monkeypatch.setattr(scoring, "CHUNK_LOGITS", chunk)
    monkeypatch.setattr(scoring, "BLOCK_LOGITS", block)
    monkeypatch.setattr(scoring, "KEPT_BYTES", kept)
    hidden, weight, offset, target = numbers(bias, device)
    factors = torch.randn(2, N, dtype=torch.float64, device=device)
    inputs = [x for x in (hidden, weight, offset) if x is not None]

    def gradients(found: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad((torch.stack(found) * factors).exp().sum(), inputs)

    ours = score_tokens(hidden, weight, offset, target, sampling, entropy=True, entropy_gradient=True)[:2]
    wanted = plain(hidden, weight, offset, target, sampling)
    torch.testing.assert_close(list(ours), wanted)
    for got, expected in zip(gradients(list(ours)), gradients(wanted), strict=True):
        torch.testing.assert_close(got, expected)


@SAMPLINGS
@pytest.mark.parametrize(("scale", "cap"), [(0.25, None), (1.0, 2.0), (3.0, 1.5)])
def test_logits_that_a_model_scales_or_caps(
    sampling: Sampling, scale: float, cap: float | None, device: torch.device
) -> None:
    hidden, weight, _, target = numbers(False, device)
    transform = LogitTransform(scale, cap)
    ours = score_tokens(hidden, weight, None, target, sampling, True, entropy_gradient=True, transform=transform)[:2]
    wanted = plain(hidden, weight, None, target, sampling, scale, cap)
    torch.testing.assert_close(list(ours), wanted)
    found, expected = (torch.autograd.grad(torch.stack([*x]).exp().sum(), [hidden, weight]) for x in (ours, wanted))
    torch.testing.assert_close(found, expected)


def test_sums_over_a_large_vocabulary_keep_float32() -> None:
    """Against the same logits in float64: a product that adds up one by one misses the entropy by 1e-3."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(8, 50_000)
    target = torch.randint(50_000, (8,))
    ours = score_tokens(torch.eye(8), logits.t().contiguous(), None, target, Sampling(), entropy=True)
    logp = logits.double().log_softmax(-1)
    torch.testing.assert_close(ours.logp.double(), logp[torch.arange(8), target], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.entropy.double(), -(logp.exp() * logp).sum(-1), rtol=0, atol=1e-5)  # type: ignore[union-attr]


def test_a_frozen_head_still_passes_the_gradient_on() -> None:
    hidden, weight, _, target = numbers(False)
    score_tokens(hidden, weight.detach(), None, target, Sampling())[0].sum().backward()
    assert hidden.grad is not None and weight.grad is None
    wanted = torch.autograd.grad(plain(hidden, weight, None, target, Sampling())[0].sum(), hidden)[0]
    torch.testing.assert_close(hidden.grad, wanted)


def test_under_autocast_the_matrices_are_half_and_the_softmax_is_not() -> None:
    hidden, weight, _, target = (x if x is None or x.dtype == torch.long else x.float() for x in numbers(False))
    assert None not in (hidden, weight, target)
    with torch.autocast("cpu", torch.bfloat16):
        logp = score_tokens(hidden, weight, None, target, Sampling()).logp
        half = torch.nn.functional.linear(hidden, weight)
    assert half.dtype == torch.bfloat16 and logp.dtype == torch.float32
    torch.testing.assert_close(logp, half.float().log_softmax(-1)[torch.arange(N), target])
    got = torch.autograd.grad(logp.sum(), [hidden, weight])
    expected = torch.autograd.grad(plain(hidden, weight, None, target, Sampling())[0].sum(), [hidden, weight])
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=0.1, rtol=0.05)


def peak_elements(work: Callable[[], object]) -> int:
    """The largest tensor that any operation created within this context."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, Tensor):
                    self.largest = max(self.largest, x.numel())
            return out

    with Watch() as watch:
        work()
    return watch.largest


def teacher_head(beta: float, top_k: int | None, device: torch.device | None = None) -> TeacherHead:
    """Return the head of a teacher wider than the student, with three more rows in its output embedding."""
    torch.manual_seed(4)
    made = [torch.randn(*shape, dtype=torch.float64).to(device) for shape in ((N, H + 2), (V + 3, H + 2), (V + 3,))]
    return TeacherHead(*made, LogitTransform(0.5, 4.0), beta, top_k)


@SAMPLINGS
@pytest.mark.parametrize(("chunk", "block", "kept"), [(1 << 25, 1 << 21, 1 << 29), (3 * V, 2 * V, 0)])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("top_k", [None, 4])
def test_the_divergence_from_a_teacher_and_its_gradient_are_those_of_whole_logits(
    sampling: Sampling,
    chunk: int,
    block: int,
    kept: int,
    beta: float,
    top_k: int | None,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
) -> None:
    """Together with the log-probabilities and entropies of the same pass; the definitions on one token at a time."""
    for name, value in {"GPU_ROWS": 1, "CHUNK_LOGITS": chunk, "BLOCK_LOGITS": block, "KEPT_BYTES": kept}.items():
        monkeypatch.setattr(scoring, name, value)
    hidden, weight, offset, target = numbers(True, device)
    teacher, transform = teacher_head(beta, top_k, device), LogitTransform(1.5, 3.0)
    factors = torch.randn(3, N, dtype=torch.float64, device=device)

    def gradients(found: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad((torch.stack(found) * factors).exp().sum(), [hidden, weight, offset])

    ours = score_tokens(hidden, weight, offset, target, sampling, True, True, transform, teacher)[:3]
    kept_tokens = [v for v in range(V) if v not in sampling.banned_token_ids]
    logits = transform(torch.nn.functional.linear(hidden, weight, offset)) / sampling.temperature
    others = teacher.transform(torch.nn.functional.linear(teacher.hidden, teacher.weight, teacher.bias))
    others = others / sampling.temperature
    apart = [
        plain_divergence(z, other, beta, top_k)
        for z, other in zip(logits[:, kept_tokens], others[:, kept_tokens], strict=True)
    ]
    logp = logits[:, kept_tokens].log_softmax(-1)
    at = torch.tensor([kept_tokens.index(int(t)) for t in target], device=device)
    wanted = [logp.gather(1, at[:, None])[:, 0], -(logp.exp() * logp).sum(-1), torch.stack(apart)]
    torch.testing.assert_close([*ours], wanted)
    torch.testing.assert_close(gradients([*ours]), gradients(wanted))


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("taught", [False, True])
def test_the_vocabulary_is_held_for_a_chunk_only(gradient: bool, taught: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CHUNK_LOGITS", 2 * V)
    monkeypatch.setattr(scoring, "KEPT_BYTES", 0)
    hidden, weight, _, target = numbers(False)

    def work() -> None:
        with torch.set_grad_enabled(gradient):
            found = score_tokens(
                hidden, weight, None, target, Sampling(), True, teacher=teacher_head(0.5, None) if taught else None
            )
        if gradient:
            (found.logp if found.divergence is None else found.logp + found.divergence).sum().backward()

    assert peak_elements(work) == ((V + 3) * (H + 2) if taught else max(V * H, 2 * V))
