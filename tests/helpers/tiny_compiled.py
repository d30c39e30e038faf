"""Proof that a run's layers were compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.algorithms import GRPO
from lit_rlvr.objectives import LossInputs, Stats
from lit_rlvr.policy import speed


def compiled_calls(result: Tensor) -> int:
    """How many calls of compiled code a result's backward pass goes through."""
    seen, left = set(), [result.grad_fn]
    while left:
        node: Any = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [next_node for next_node, _ in node.next_functions]
    return sum("CompiledFunction" in type(node).__name__ for node in seen)


@functools.cache
def without_code(plain: Callable[..., Any]) -> Callable[..., Any]:
    """As `speed._compiled`, but the graphs are run by torch's operators: writing C++ takes a minute."""
    return torch.compile(plain, dynamic=True, backend="aot_eager")


class CompiledGRPO(GRPO):
    """GRPO whose run fails if a micro-batch did not go through compiled code."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        speed._compiled = without_code  # type: ignore[assignment]

    def loss(self, x: LossInputs) -> tuple[Tensor, Stats]:
        assert compiled_calls(x.logp) > 0
        return super().loss(x)
