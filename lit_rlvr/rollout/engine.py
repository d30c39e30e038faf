"""The interface of rollout engines, which generate completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from lit_rlvr.rollout.turns import Turns
from lit_rlvr.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_rlvr.policy.policy import Policy

Done = Callable[[int, list[Completion]], None]


@dataclass(frozen=True)
class EngineContext:
    """What an engine is started with.

    Args:
        folder: the model folder or hub id that the policy was loaded from.
        policy: the trainer's live policy.
        tokenizer: for decoding.
        max_tokens: maximum length of a sequence, prompt plus completion; 0 = as long as asked for.
        max_sequences: maximum number of completions per call.
        seed: the run's seed.
        dtype: the trainer's compute type.
        max_images: maximum number of images per prompt.
        reserved: bytes on the policy's device that training has yet to allocate and then keeps.
        tokens: the most tokens that will be sampled while the engine is up; 0 = unknown.
    """

    folder: str
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    max_sequences: int
    seed: int
    dtype: torch.dtype = torch.float32
    max_images: int = 1
    deterministic: bool = False
    reserved: int = 0
    tokens: int = 0

    def limit(self, asked: int, before: int) -> int:
        """The longest completion or turn after `before` tokens: what is asked for, as far as `max_tokens` allows.

        In training, `check_lengths` makes sure that everything fits; only an evaluation may reach the model's context.
        """
        return min(asked, self.max_tokens - before) if self.max_tokens else asked

    @classmethod
    def in_place(cls, policy: Policy, tokenizer: PreTrainedTokenizerBase, sequences: int) -> EngineContext:
        """A context for an engine that decodes with the policy itself (`HFEngine`) and so allocates nothing."""
        return cls("", policy, tokenizer, max_tokens=0, max_sequences=sequences, seed=0)


class Generates(Protocol):
    """Samples completions and can be probed: an engine, or the owner of one."""

    @property
    def name(self) -> str: ...

    @property
    def compute_dtype(self) -> torch.dtype: ...

    @property
    def probe_tolerance(self) -> float: ...

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: Done | None = None,
        turns: Turns | None = None,
    ) -> list[list[Completion]]:
        """Sample `len(seeds[p])` completions of each prompt p; completion g depends only on `seeds[p][g]`.

        Called on every rank at once; a rank may have no prompts while others have some.

        Args:
            done: called with each prompt's index and completions as soon as its group is complete, in any order.
            turns: says how a completion goes on when it stops; None = it is over. Completions go through their turns
                independently of each other.
        """


class RolloutEngine(Generates, ABC):
    """Generates completions from a copy of (or a view on) the policy's weights.

    Attributes:
        exact: its log-probabilities equal the trainer's up to rounding, so importance correction is off by default.
        shares_weights: it decodes with the very weights that are being trained.
        keeps_weights: each process can restore the last sync's weights by itself, whether or not they are sharded.
        in_process: it generates in the training process, on its device.
        quantized: it computes with weights in 8 bits.
    """

    exact: bool = False
    shares_weights: bool = False
    keeps_weights: bool = False
    in_process: bool = True
    quantized: bool = False

    def check_hardware(self, device: str, dtype: torch.dtype) -> None:
        """Refuse a device that the engine's options do not work on, or a compute type of the trainer, before weights
        are loaded.

        Args:
            device: `cpu` or `cuda`.

        Raises:
            UserError: names the option.
        """

    @abstractmethod
    def start(self, context: EngineContext) -> None:
        """Load what is needed. The engine gets the policy's weights with the first `sync`."""

    @abstractmethod
    def sync(self, policy: Policy) -> None:
        """Load the weights of the trained policy, or of a reference, and drop every cache made with older weights.

        `policy.named_weights()` yields the full weights by their Hugging Face names, with adapters merged. Collective:
        called on every rank.
        """

    def restore(self, policy: Policy) -> None:
        """Load the last sync's weights again after a restart, on this rank alone."""
        self.sync(policy)

    def rest(self) -> bool:
        """Free memory until the next sync. Returns whether it did so, which discards the weights."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Free memory and end processes. Closing twice is allowed."""

    @property
    def probe_tolerance(self) -> float:
        """Difference from the trainer's log-probabilities that counts as rounding, in nats; see `check_engine`.

        In bfloat16 the means of 128 probes of right engines reach 0.053 (SmolLM2, vLLM and Hugging Face on a CPU), and
        those of an engine with one wrong weight matrix begin at 0.175.

        In 8 bits the means of right engines reach 0.43 (SmolLM2, FP8 rounding of weights and inputs simulated on a
        CPU). One wrong matrix (0.08 to 1.3) or layer (0.2 to 2.0) is found only by chance; the same matrix wrong in
        every layer (3.1 and more) always.
        """
        if self.quantized:
            return 0.6
        return 3e-4 if self.compute_dtype == torch.float32 else 0.1

    @property
    def compute_dtype(self) -> torch.dtype:
        """The engine's compute type."""
        return torch.float32

    @property
    def name(self) -> str:
        return type(self).__name__.removesuffix("Engine").lower()
