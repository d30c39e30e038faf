"""Attention by spans against one completion per row, in numbers and through a model."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_prompt, tiny_llama
from torch import Tensor
from torch.nn.attention import _registry, current_flash_attention_impl, restore_flash_attention_impl

from lit_rlvr.errors import UserError
from lit_rlvr.policy import attention, spans
from lit_rlvr.policy.attention import lay_out_padded
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.spans import attend, lay_out_spans
from lit_rlvr.policy.verify import check_spans, try_flash_attention_3
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Rollout

GROUPS = {
    "mixed": [(5, [3, 1, 9]), (30, [4]), (7, [11, 2])],
    "one token each": [(1, [1, 1])],
    "a prompt alone": [(4, []), (3, [5])],
    "prompts only": [(6, []), (2, [])],
    "one token and none": [(4, []), (3, [1])],
    "long and short": [(3, [40, 1, 1, 1, 1, 1, 1, 1])],
}
CPU = torch.device("cpu")


def row(groups: list[tuple[int, list[int]]]) -> tuple[list[range], list[tuple[int, range]], int]:
    """Positions of prompts and completions of these lengths, and the total number of tokens."""
    prompts, completions, end = [], [], 0
    for prompt, _ in groups:
        prompts.append(range(end, end + prompt))
        end += prompt
    for p, (_, lengths) in enumerate(groups):
        for length in lengths:
            completions.append((p, range(end, end + length)))
            end += length
    return prompts, completions, end


def one_by_one(q: Tensor, k: Tensor, v: Tensor, prompts: list[range], completions: list[tuple[int, range]]) -> Tensor:
    """Each prompt, and each completion after its prompt, as a separate sequence: softmax(q k^T / 4) v, causal."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    out = [torch.zeros_like(q[0])] * len(q)
    for asking, seen in [(p, [*p]) for p in prompts] + [(c, [*prompts[p], *c]) for p, c in completions]:
        for t in asking:
            sees = torch.tensor([s for s in seen if s <= t], device=q.device)
            out[t] = torch.einsum("hs,shd->hd", (torch.einsum("hd,shd->hs", q[t], k[sees]) / 4).softmax(-1), v[sees])
    return torch.stack(out)


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_outputs_and_gradients_are_those_of_one_completion_per_row(
    name: str, dtype: torch.dtype, tolerance: float, device: torch.device
) -> None:
    """On a GPU, whose kernels are for 16 bits, up to their rounding."""
    prompts, completions, tokens = row(GROUPS[name])
    generator = torch.Generator().manual_seed(0)
    if device.type == "cuda":
        dtype, tolerance = (torch.bfloat16, 6e-2) if dtype == torch.float32 else (torch.float16, 8e-3)
    q, k, v, grad = (torch.randn(tokens, heads, 16, generator=generator).to(device, dtype) for heads in (6, 2, 2, 6))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    ours = attend(*inputs, lay_out_spans(prompts, completions).to(device), 0.25)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    theirs = one_by_one(*exact, prompts, completions)
    torch.testing.assert_close(ours.double(), theirs, atol=tolerance, rtol=tolerance)
    found, wanted = torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, exact, grad.double())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=tolerance)


def test_the_two_parts_of_a_completion_are_rounded_once(device: torch.device) -> None:
    """In all 0.26 % of the result; weighed and added in bfloat16 it would be 0.35 %."""
    prompts, completions, tokens = row([(40, [60, 30]), (70, [50])])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(tokens, heads, 16, generator=generator).bfloat16() for heads in (6, 2, 2))
    ours = attend(*(x.to(device) for x in (q, k, v)), lay_out_spans(prompts, completions).to(device), 0.25).cpu()
    theirs = one_by_one(q.double(), k.double(), v.double(), prompts, completions)
    assert (ours.double() - theirs)[110:].norm() / theirs[110:].norm() < 0.003


def test_both_methods_are_compared_where_a_policy_trains(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's kernel might do wrong: leak from one group to the next, or lose a part of the gradient."""
    policy = Policy(tiny_llama().to(device), (2,))
    check_spans(policy, torch.bfloat16)
    right, of_shared = spans._gradient, spans.Blocks.of

    def lost(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(x * (0.5 if arguments[6].queries != arguments[6].keys else 1.0) for x in right(*arguments))

    def leaking(queries: list[int], keys: list[int]) -> spans.Blocks:
        return of_shared(queries, keys if queries == keys else [keys[0] + 1, keys[1] - 1])

    for name, wrong in (("_gradient", lost), ("Blocks.of", leaking)):
        with monkeypatch.context() as broken:
            broken.setattr(f"lit_rlvr.policy.spans.{name}", wrong)
            with pytest.raises(UserError, match="computes something else on"):
                check_spans(policy, torch.bfloat16)


class Kernels:
    """A made-up FlashAttention 3, which torch registers and removes as the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
        self.wrong = wrong
        self.calls = 0
        self.patch = monkeypatch
        self.kernel = spans._kernel

    def register(self) -> "Kernels":
        if self.wrong == "import":
            raise ImportError("libcudart.so.13: cannot open shared object file\nmore")
        self.patch.setattr(spans, "_kernel", self.compute)
        return self

    def compute(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        self.calls += 1
        if self.wrong == "run":
            raise RuntimeError("FA3 flash_attention forward unsupported: inputs must share device")
        out, lse = self.kernel(*arguments)
        return out * (0.5 if self.wrong == "numbers" else 1.0), lse

    def remove(self) -> None:
        self.patch.setattr(spans, "_kernel", self.kernel)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("", "attention is computed by FlashAttention 3"),
        ("numbers", "FlashAttention 3 is installed and not used: it computes something else"),
        ("run", "not used: RuntimeError: FA3 flash_attention forward unsupported"),
        ("import", "not used: ImportError: libcudart.so.13: cannot open shared object file"),
    ],
)
def test_flash_attention_3_is_used_if_it_computes_the_same(
    wrong: str, line: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy(tiny_llama(), (2,))
    kernels = Kernels(monkeypatch, wrong)
    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA3", kernels.register)
    try_flash_attention_3(policy, torch.bfloat16)
    assert current_flash_attention_impl() is None, "there is no such GPU"
    monkeypatch.setattr("lit_rlvr.policy.verify.has_flash_attention_3", lambda device: True)
    with caplog.at_level(logging.INFO):
        try_flash_attention_3(policy, torch.bfloat16)
    assert current_flash_attention_impl() == (None if wrong else "FA3")
    assert [line in record.getMessage() for record in caplog.records] == [True]
    assert all(parameter.grad is None for parameter in policy.parameters())
    kernels.calls = 0
    if wrong:
        check_spans(policy, torch.bfloat16)
        assert kernels.calls == 0, "torch's own kernels compute again"
    restore_flash_attention_impl(_raise_warn=False)


@pytest.mark.parametrize(
    ("device", "capability", "installed", "has"),
    [
        ("cuda", (9, 0), True, True),
        ("cuda", (9, 0), False, False),
        ("cuda", (8, 0), True, False),
        ("cuda", (10, 0), True, False),
        ("cpu", (9, 0), True, False),
    ],
)
def test_flash_attention_3_is_for_hopper(
    device: str,
    capability: tuple[int, int],
    installed: bool,
    has: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if installed:
        (tmp_path / "flash_attn_interface.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert spans.has_flash_attention_3(torch.device(device)) is has


def test_no_block_of_queries_is_said_to_have_one_at_most() -> None:
    """A GPU's kernel would then take all blocks to have one."""
    spans = lay_out_spans(*row(GROUPS["one token and none"])[:2])
    assert (spans.shared.queries, spans.shared.longest) == ([0, 1], (2, 4))


def test_a_model_scores_alike_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout with one long completion, as a policy scores it for training."""
    policy = Policy(tiny_llama().double(), (2,))
    groups = [[Completion("", tuple(range(3, 3 + n)), "stop") for n in lengths] for lengths in ([60, 2, 4], [1, 5, 3])]
    rollout = Rollout.unscored([make_prompt([5, 6, 7]), make_prompt([9] * 12)], groups, Sampling(), 3)
    seen: list[str] = []
    kernel = spans._kernel

    def noted(*arguments: object) -> object:
        seen.append("spans")
        return kernel(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(spans, "_kernel", noted)

    def scored() -> tuple[Tensor, Tensor]:
        policy.zero_grad()
        logp, _ = policy.logprobs(rollout, list(range(6)))
        (logp * torch.arange(1, logp.numel() + 1).view(logp.shape)).sum().backward()
        return logp.detach(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    found = scored()
    assert seen
    seen.clear()
    monkeypatch.setattr("lit_rlvr.policy.attention._WASTED", 1e9)
    wanted = scored()
    assert not seen
    torch.testing.assert_close(found[0], wanted[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(found[1], wanted[1], atol=1e-8, rtol=1e-10)


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        ({"head_dim": 256}, True),
        ({"head_dim": 264}, False),
        ({"head_dim": 20}, False),
        ({"head_dim": 192, "v_head_dim": 128}, False),
        ({"head_dim": None}, True),
    ],
)
def test_heads_that_the_kernel_does_not_take_are_padded(
    sizes: dict[str, int | None], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(tiny_llama(), (2,))
    for name, size in sizes.items():
        setattr(policy.model.config, name, size)
    assert policy.attention_method is None, "a CPU takes all"
    monkeypatch.setattr(Policy, "device", torch.device("cuda"))
    assert policy.attention_method is (None if taken else lay_out_padded)


def test_memory_is_linear_whatever_the_lengths() -> None:
    """What is kept for the backward pass: query, key, value, output and log-sum-exp of each token, no scores."""
    sizes = []
    for lengths in ([8] * 8, [57, 1, 1, 1, 1, 1, 1, 1]):
        prompts, completions, tokens = row([(16, lengths)])
        q, k, v = (torch.randn(tokens, heads, 16, requires_grad=True) for heads in (6, 2, 2))
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            attend(q, k, v, lay_out_spans(prompts, completions), 0.25)
        assert sum(kept) == tokens * (6 + 2 + 2 + 6) * 16 + tokens * 6
        sizes.append(sum(kept))
    assert sizes[0] == sizes[1]


def test_without_gradients_a_gpu_never_holds_the_bias_of_all_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of float32, for which it has no kernel for spans; the numbers are the same."""
    seen, product = [], attention.scaled_dot_product_attention

    def noted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **options: Any) -> Tensor:
        seen.append(mask.numel())
        return product(q, k, v, mask, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", noted)
    monkeypatch.setattr(attention, "_BIAS", 2 * 3 * 12 + 1)
    q, k, v = torch.randn(4, 2, 7, 8), torch.randn(4, 2, 12, 8), torch.randn(4, 2, 12, 8)
    mask = torch.ones(1, 2, 7, 12, dtype=torch.bool).tril(5)
    wanted = attention._fused(q, k, v, mask, 0.3)
    with torch.no_grad():
        torch.testing.assert_close(attention._fused(q, k, v, mask, 0.3), wanted)
    assert seen == [2 * 7 * 12, *[2 * 3 * 12] * 2, 2 * 12]
