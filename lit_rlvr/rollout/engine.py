"""The engine interface: what generates completions, whatever is underneath."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from lit_rlvr.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_rlvr.policy.policy import Policy

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

    @classmethod
    def in_place(cls, policy: Policy, tokenizer: PreTrainedTokenizerBase, sequences: int) -> EngineContext:
        """For an engine that decodes with the policy itself (`HFEngine`): it loads nothing and sets no room aside."""
        return cls("", policy, tokenizer, max_tokens=0, max_sequences=sequences, seed=0)


class Generates(Protocol):
    """What samples completions, and is probed: an engine, or the owner of one."""

    @property
    def name(self) -> str: ...

    @property
    def compute_dtype(self) -> torch.dtype: ...

    @property
    def probe_tolerance(self) -> float: ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: Done | None = None,
    ) -> list[list[Completion]]: ...


class RolloutEngine(ABC):
    """Generates completions from a copy of (or a view on) the policy's weights.

    `exact` says that its log-probabilities are the trainer's own up to rounding, so that no importance
    correction is needed by default; `shares_weights` that it decodes with the very weights that are trained;
    `keeps_weights` that a process can restore the last sync's weights alone, sharded or not; `in_process` that it
    generates in the training process, on its device.
    """

    exact: bool = False
    shares_weights: bool = False
    keeps_weights: bool = False
    in_process: bool = True

    @abstractmethod
    def start(self, context: EngineContext) -> None:
        """Load what is needed. The weights become the policy's with the first `sync`."""

    @abstractmethod
    def sync(self, policy: Policy) -> None:
        """Take over the weights of the trained policy, or of a reference, and forget every cache made with older ones.

        `policy.named_weights()` gives them by their Hugging Face names, whole and with adapters merged. Collective: it
        is called on every rank.
        """

    def restore(self, policy: Policy) -> None:
        """Bring the last sync's weights after a restart, on this rank alone."""
        self.sync(policy)

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
