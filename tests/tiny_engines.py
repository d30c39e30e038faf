"""Engines for tests: one with weights of its own, and one that crashes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.policy import load_policy
from lit_rlvr.rollout.engine import Done, EngineContext
from lit_rlvr.rollout.hf import HFEngine
from lit_rlvr.types import Completion, Prompt, Sampling


class Copying(HFEngine):
    """Decodes with a copy of the weights that it makes at each sync, as vLLM does."""

    exact = False
    shares_weights = False

    def start(self, context: EngineContext) -> None:
        super().start(context)
        self.copy = load_policy(context.folder)
        self.sampled_with: list[torch.Tensor] = []

    def follow(self, policy: Any) -> None:
        self.policy = self.copy
        self.source = policy

    def sync(self, named_parameters: Any) -> None:
        self.copy.load_state_dict(self.source.state_dict())

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], done: Done | None = None
    ) -> list[list[Completion]]:
        if len(prompts) > 1:
            self.sampled_with.append(next(self.copy.parameters()).detach().clone())
        return super().generate(prompts, sampling, seeds, done)


class Crashing(Copying):
    """Crashes in the given calls (counted from 1) of one method, in `generate` after so many groups.

    Attributes:
        log: what was called: start, sync, close, or how many prompts were asked for.
    """

    def __init__(self, method: str = "generate", calls: Sequence[int] = (), groups: int = 0) -> None:
        super().__init__()
        self.method, self.calls, self.groups = method, calls, groups
        self.count = 0
        self.log: list[str] = []

    def _crashes(self, method: str, note: str = "") -> bool:
        self.log.append(note or method)
        self.count += method == self.method
        return method == self.method and self.count in self.calls

    def start(self, context: EngineContext) -> None:
        if self._crashes("start"):
            raise OSError("no such device")
        super().start(context)

    def sync(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        if self._crashes("sync"):
            raise RuntimeError("the engine is dead")
        super().sync(named_parameters)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], done: Done | None = None
    ) -> list[list[Completion]]:
        if not self._crashes("generate", str(len(prompts))):
            return super().generate(prompts, sampling, seeds, done)
        for p, group in enumerate(super().generate(prompts, sampling, seeds)[: self.groups]):
            if done is not None:
                done(p, group)
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    def close(self) -> None:
        if self._crashes("close"):
            raise RuntimeError("it does not answer")
        super().close()
