"""Recomputation changes memory use but not results; GPU kernels report where they cannot run."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import END, make_rollout, random_ids, tiny_llama
from tiny_fit import fit

from lit_rlvr.errors import UserError
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.speed import enable_checkpointing, use_liger

ROLLOUT = make_rollout([random_ids(9, 1)], [[random_ids(12, 2), random_ids(30, 3)]])


def saved_bytes(policy: Policy) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes that autograd keeps for the backward pass, and the gradients."""
    sizes: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logp, _ = policy.logprobs(ROLLOUT, [0, 1])
    policy.zero_grad()
    logp.sum().backward()
    return sum(sizes.values()), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def test_checkpointing_keeps_less_and_gives_the_same_gradients() -> None:
    plain, wanted = saved_bytes(Policy(tiny_llama(), (END,)))
    model = tiny_llama()
    enable_checkpointing(model)
    less, got = saved_bytes(Policy(model, (END,)))
    assert less < plain / 2
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient)
    assert not any(module.training for module in model.modules()), "dropout stays off"


def test_a_checkpointed_run_generates_with_its_cache_and_ends_the_same(tiny_model_folder: Path, tmp_path: Path) -> None:
    plain, seen = fit(tiny_model_folder, tmp_path, steps=2)
    again, other = fit(tiny_model_folder, tmp_path, steps=2, compute={"gradient_checkpointing": True})
    assert [r.token_ids.tolist() for r in seen.rollouts] == [r.token_ids.tolist() for r in other.rollouts]
    for ours, theirs in zip(again.policy.parameters(), plain.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_liger_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="GPU only"):
        use_liger(tiny_llama())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "liger_kernel" else find_spec(name))
    with pytest.raises(UserError, match=r"liger_kernel is not installed; pip install 'liger-kernel>=0\.8'"):
        use_liger(tiny_llama())


def test_liger_replaces_kernels_but_not_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels need a GPU, but the arguments it gets can be checked without one."""
    asked: dict[str, Any] = {}
    module = ModuleType("liger_kernel.transformers")
    module._apply_liger_kernel_to_instance = lambda **options: asked.update(options)  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    model = tiny_llama()
    use_liger(model)
    assert asked == {"model": model, "cross_entropy": False, "fused_linear_cross_entropy": False}
