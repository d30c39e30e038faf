"""Copies to a GPU: from page-locked memory, without waiting, and nowhere else on the way of an optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from tiny import ENDS, make_rollout, random_ids, tiny_llama
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_rlvr.algorithms import GRPO
from lit_rlvr.distributed.collectives import index, to_device
from lit_rlvr.objectives import Correction
from lit_rlvr.policy import attention as shared_prefix
from lit_rlvr.policy.policy import Policy
from lit_rlvr.training.step import PreparedRollout, logprobs_of, loss_inputs, plan_step
from lit_rlvr.types import Rollout, Sampling

CPU, GPU, META = torch.device("cpu"), torch.device("cuda:0"), torch.device("meta")


class Copies(TorchDispatchMode):
    """Notes every copy from one device to another: (from, to, whether it does not wait)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.seen.append((args[0].device.type, found.device.type, bool((kwargs or {}).get("non_blocking"))))
        return found


def test_a_copy_to_a_gpu_is_from_page_locked_memory_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[list[int]] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: (pinned.append(list(self.shape)), self)[1])
    with FakeTensorMode(), Copies() as copies:  # GPU tensors without a GPU
        moved = to_device(torch.ones(3, 2), GPU)
        assert moved.device == GPU
        assert to_device(moved, GPU) is moved
        assert index([1, 2, 3], GPU).dtype == torch.long
    assert pinned == [[3, 2], [3]]
    assert copies.seen == [("cpu", "cuda", True)] * 2


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.ones(3)
    assert to_device(tensor, CPU) is tensor


class NoLists(TorchFunctionMode):
    """Refuses to make a tensor of numbers on the meta device itself, or to index one there with a list."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not (args[0].is_meta and any(isinstance(x, list) for x in places)), "indexed with a list"
        assert func is not torch.tensor or torch.device(kwargs.get("device") or "cpu") == CPU, "made of numbers"
        return func(*args, **kwargs)


class NoValues(TorchDispatchMode):
    """The meta device in place of a GPU: to read a number there, or to give it a CPU tensor, is an error.

    A GPU would have to be waited for there. Tensors without dimensions are as good as numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moving = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        flat, _ = torch.utils._pytree.tree_flatten((args, kwargs, found))
        devices = {x.device.type for x in flat if isinstance(x, Tensor) and x.dim()}
        assert self.moving or len(devices) < 2, f"{func} mixes tensors of {devices}"
        return found


@contextmanager
def no_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    mode = NoValues()

    def moved(tensor: Tensor, device: torch.device) -> Tensor:
        mode.moving = True
        try:
            return to_device(tensor, device)
        finally:
            mode.moving = False

    for name in ("distributed.collectives", "policy.layout", "policy.attention", "policy.spans", "training.step"):
        monkeypatch.setattr(f"lit_rlvr.{name}.to_device", moved)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # torch has none for the meta device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    with NoLists(), mode:
        yield


SAMPLING = Sampling(temperature=0.7, banned_token_ids=(3,))


def ragged() -> Rollout:
    """Three groups of two, with completions of different lengths."""
    completions = [[random_ids(n, 10 * p + n) for n in (2, 5 + 3 * p)] for p in range(3)]
    return make_rollout([random_ids(n, n) for n in (9, 3, 4)], completions, [[1.0, 0.0]] * 3, SAMPLING)


def optimizer_step(policy: Policy, rollout: Rollout) -> None:
    """An iteration's two updates on a rollout, as `RLVRModule` takes them, up to the optimizer."""
    algorithm = GRPO(kl_coef=0.1)
    device = policy.device
    old = logprobs_of(policy, rollout, [2, 3, 4, 5], 30, in_lockstep=False)
    prepared = PreparedRollout(rollout, torch.ones(6, 1, device=device), list(range(6)), old, ref=old)
    for prompts in ([0], [1, 2]):
        step = plan_step(
            prepared, prompts, device, "sequence_mean", 30, policy.shared_prefix, Correction("token_truncate"), False
        )
        for k in range(len(step.microbatches)):
            logp, entropy = policy.logprobs(rollout, step.microbatches[k], entropy=True)
            prepared.record_old(step.microbatches[k], logp)
            x, _ = loss_inputs(step, k, logp, entropy)
            algorithm.loss(x)[0].backward()
        prepared.on_policy = False


@pytest.mark.parametrize("spans", [False, True], ids=["padded", "spans"])
def test_an_optimizer_step_never_waits_for_the_device(spans: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prefix, "available", lambda *_: spans)
    policy = Policy(tiny_llama().to(META), ENDS)
    with no_values(monkeypatch):
        optimizer_step(policy, ragged())
    assert all(weight.grad is not None and weight.grad.is_meta for weight in policy.parameters())


def test_the_check_above_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.ones(4, device=META)
    with no_values(monkeypatch):
        for read in (weights.tolist, weights.sum().item, weights.nonzero):
            with pytest.raises((RuntimeError, NotImplementedError)):
                read()
        with pytest.raises(AssertionError, match="mixes tensors"):
            torch.ones(4).to(META)
        with pytest.raises(AssertionError, match="mixes tensors"):
            weights[torch.tensor([0, 2])]
        with pytest.raises(AssertionError, match="indexed with a list"):
            weights[[0, 2]]
        with pytest.raises(AssertionError, match="indexed with a list"):
            weights[[0, 2]] = 1.0
        with pytest.raises(AssertionError, match="made of numbers"):
            torch.tensor([1, 2], device=META)
        assert index([1, 2], META).is_meta, "the one way that is right"
