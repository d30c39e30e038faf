"""The interface of rollout engines, which generate completions, turn by turn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_rlvr.common.arguments import ChecksArguments
from lit_rlvr.engines.turns import (
    OnGroupDone,
    Row,
    Turns,
    ends_with_stop,
    finished_groups,
    next_turns,
    read_completion,
    within_budget,
)
from lit_rlvr.plan import RunPlan
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_rlvr.policy.policy import Policy


OnGroupStarted = Callable[[int, Callable[[], object] | None], None]
"""Called with a prompt's index, and a function that drops its group; None = it cannot be dropped."""


@dataclass(frozen=True)
class EngineContext:
    """The settings that an engine is started with.

    Args:
        folder: the model folder or hub id that the policy was loaded from.
        policy: the trainer's live policy.
        tokenizer: for decoding.
        max_tokens: maximum length of a sequence, prompt plus completion; 0 = as long as asked for.
        max_sequences: maximum number of completions per call.
        seed: the run's seed.
        dtype: the trainer's compute type.
        max_images, max_videos: maximum number of images and of videos per prompt.
        reserved: bytes on the policy's device that training has yet to allocate and then keeps.
        tokens: the most tokens that will be sampled while the engine is up; 0 = unknown.
        run: the run's folder; None = there is none.
        streams: `generate_stream` will be called, while weights are synced.
        deterministic: repeated runs have to agree (`rollout.deterministic`).
    """

    folder: str
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    max_sequences: int
    seed: int
    dtype: torch.dtype = torch.float32
    max_images: int = 1
    max_videos: int = 0
    deterministic: bool = False
    reserved: int = 0
    tokens: int = 0
    run: Path | None = None
    streams: bool = False

    def limit(self, tokens: int, before: int) -> int:
        """Return the longest completion or turn after `before` tokens: `tokens`, as far as `max_tokens` allows.

        In training, `check_lengths` makes sure that everything fits; only an evaluation may reach the model's context.
        """
        if self.max_tokens:
            return min(tokens, self.max_tokens - before)
        return tokens

    @classmethod
    def in_place(cls, policy: Policy, tokenizer: PreTrainedTokenizerBase, sequences: int) -> EngineContext:
        """Return a context for an engine that decodes with the policy itself (`HFEngine`) and so allocates nothing."""
        return cls("", policy, tokenizer, max_tokens=0, max_sequences=sequences, seed=0)


@dataclass(frozen=True)
class EngineMemory:
    """What an engine takes of the GPUs that train; by default nothing, because it generates elsewhere.

    Args:
        share: of each GPU's memory, for its weights, keys and values.
        fitted: the share is the smallest in which all sequences are generated at once, as far as memory allows.
        quantized: its layers are in 8 bits.
        sleeps: it frees its memory while the model trains.
        in_place: it decodes with the trained weights; its keys and values take what they need.
    """

    share: float = 0.0
    fitted: bool = False
    quantized: bool = False
    sleeps: bool = True
    in_place: bool = False


class RolloutEngine(ChecksArguments, ABC):
    """An engine generates completions from a copy of (or a view on) the policy's weights.

    docs/plugins.md has one of 20 lines. `InPlaceEngine` is the base of those that decode with the trained weights,
    `OneByOneEngine` of those that do so one completion after the other.

    Attributes:
        exact: its log-probabilities equal the trainer's up to rounding, so importance correction is off by default.
        concurrent: several threads can generate at once, and weights can be synced meanwhile: what runs is continued
            with the new ones, and each token has the label of those that sampled it.
        shares_weights: it decodes with the very weights that are being trained.
        keeps_weights: each process can restore the last sync's weights by itself, whether or not they are sharded.
        in_process: it generates in the training process, on its device.
        quantized: it computes with weights in 8 bits.
        recompute_cache: what runs at a sync is continued with keys and values of the new weights.
        takes_stop: completions can end at texts (`sampling.stop`).
    """

    config_key = "rollout.engine"

    exact: bool = False
    concurrent: bool = False
    shares_weights: bool = False
    keeps_weights: bool = False
    in_process: bool = True
    quantized: bool = False
    recompute_cache: bool = True
    takes_stop: bool = True

    @property
    def label(self) -> str:
        """The label of the last sync's weights, if completions name those that sampled them."""
        return ""

    def is_exact(self, dtype: torch.dtype) -> bool:
        """Return whether its log-probabilities equal those of a trainer that computes in `dtype`, up to rounding."""
        return self.exact and dtype == torch.float32

    def problems(self, plan: RunPlan) -> Iterator[str]:
        """Yield what the engine cannot do in a run, a line each, before weights are loaded."""
        if plan.staleness and self.shares_weights:
            yield f"rollout.staleness: engine {self.name} decodes with the weights being trained; use vllm"
        elif plan.staleness and self.in_process and plan.device.type == "cuda":
            yield (
                f"rollout.staleness: engine {self.name} needs the GPU that is training; use VLLMServerEngine on other "
                "GPUs"
            )
        elif plan.staleness > 1 and not self.concurrent:
            yield (
                f"rollout.staleness: engine {self.name} takes weights only between rollouts, so it is at most 1; use "
                "VLLMServerEngine"
            )
        if plan.replays_routes:
            yield from self.route_problems(plan)

    def route_problems(self, plan: RunPlan) -> Iterator[str]:
        """Yield why the engine does not return the experts that tokens use (`Completion.routes`)."""
        yield f"rollout.replay_routes: engine {self.name} does not return the experts of tokens; use rollout.engine: hf"

    def memory(self, staleness: int) -> EngineMemory:
        """Return what it takes of the GPUs that train, for `lit-rlvr plan` and `strategy: auto`.

        Args:
            staleness: `rollout.staleness`; above 0 it generates during training.
        """
        return EngineMemory()

    @abstractmethod
    def start(self, context: EngineContext) -> None:
        """Load what is needed. The engine gets the policy's weights with the first `sync`."""

    @abstractmethod
    def sync(self, policy: Policy) -> None:
        """Load the weights of the trained policy, or of a reference, and drop every cache made with older weights.

        `policy.named_weights()` yields the full weights by their Hugging Face names, with adapters merged. An engine
        that can add adapters to its layers itself may load the weights `without_adapters` once, and then
        `policy.adapter_weights` alone, where `policy.adapter_config` is not None.

        Collective; it is called on every rank.
        """

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
        turns: Turns | None = None,
    ) -> list[list[Completion]]:
        """Sample `len(seeds[p])` completions of each prompt p; completion g depends only on `seeds[p][g]`.

        Collective; it is called on every rank. A rank may have no prompts while others have some.

        Args:
            prompts: this rank's.
            sampling: how tokens are drawn, and the longest completion.
            seeds: for each prompt, one seed for each of its completions.
            done: called with each prompt's index and completions as soon as its group is complete, in any order.
            turns: says how a completion goes on when it stops; None = it is over. Completions go through their turns
                independently of each other.
        """

    def generate_stream(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        started: OnGroupStarted,
        done: OnGroupDone,
        turns: Turns | None = None,
    ) -> None:
        """Generate as `generate` does, in a thread during training; what `generate` asks for goes first.

        The other arguments are those of `generate`.

        Args:
            started: called with each prompt's index when its group begins, and a function that drops the group: it is
                not told as done then.
        """
        for p in range(len(prompts)):
            started(p, None)
        more: dict[str, Any] = {} if turns is None else {"turns": turns}  # an engine may know single turns only
        for p, group in enumerate(self.generate(prompts, sampling, seeds, done, **more)):
            done(p, group)

    def restore(self, policy: Policy) -> None:
        """Load the last sync's weights again after a restart, on this rank alone."""
        self.sync(policy)

    def check_copies(self) -> None:  # optional
        """Check that all copies of the last sync's weights are the same.

        Collective; it is called on every rank, with a probe.

        Raises:
            UserError: two differ.
        """

    def sleep(self) -> bool:
        """Free memory until the next sync; return whether it did so, which discards the weights."""
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
        if self.compute_dtype == torch.float32:
            return 3e-4
        return 0.1

    @property
    def compute_dtype(self) -> torch.dtype:
        """The engine's compute type."""
        return torch.float32

    @property
    def name(self) -> str:
        return type(self).__name__.removesuffix("Engine").lower()


class InPlaceEngine(RolloutEngine):
    """An engine that decodes with the policy's own weights and precision, so nothing is copied or can go stale.

    Attributes:
        context: the settings that it was started with.
        policy: the trained policy or a reference, as of the last `sync`; `decode` may call `policy.model`.
    """

    exact = True
    shares_weights = True

    context: EngineContext
    policy: Policy

    @property
    def compute_dtype(self) -> torch.dtype:
        if hasattr(self, "context"):
            return self.context.dtype
        return torch.float32

    def memory(self, staleness: int) -> EngineMemory:
        return EngineMemory(in_place=True)

    def start(self, context: EngineContext) -> None:
        self.context = context
        self.policy = context.policy

    def sync(self, policy: Policy) -> None:
        """Use this policy's weights from now on; nothing is copied."""
        self.policy = policy

    def close(self) -> None:
        """Forget the policy, so that its memory can be freed."""
        for name in ("context", "policy"):
            vars(self).pop(name, None)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
        turns: Turns | None = None,
    ) -> list[list[Completion]]:
        turns = within_budget(sampling, self.context.tokenizer, self.context.limit, turns)
        turns.begin(prompts, sampling, seeds)
        half = self.compute_dtype != torch.float32
        # A reference is the model with other adapters, and FSDP2 gathers weights for a whole policy only.
        with self.policy.weights(), torch.autocast(self.policy.device.type, self.compute_dtype, enabled=half):
            return self.decode(prompts, sampling, seeds, done, turns)

    @abstractmethod
    def decode(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None,
        turns: Turns,
    ) -> list[list[Completion]]:
        """Do what `generate` promises with `policy.model`, which has the weights of the policy while this runs.

        Each rank holds the full weights, and may call the model as often as it needs to: this is not collective. The
        arguments are those of `generate`; `turns` has begun.
        """


class OneByOneEngine(InPlaceEngine):
    """An in-place engine that samples one completion after the other: a subclass samples single turns."""

    def decode(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None,
        turns: Turns,
    ) -> list[list[Completion]]:
        groups = []
        for p, prompt in enumerate(prompts):
            limit = self.context.limit(sampling.max_tokens, len(prompt.token_ids))
            groups.append([Row(p, g, prompt, seed, limit) for g, seed in enumerate(seeds[p])])
        for row in chain.from_iterable(groups):
            row.open(turns)
            while row.whole is None:
                turns.stopped(row.p, row.g, self._turn(row, sampling))
                next_turns(groups, turns, 1, done)
        return finished_groups(groups)

    def _turn(self, row: Row, sampling: Sampling) -> Completion:
        """Sample the current turn of a completion."""
        tokenizer = self.context.tokenizer
        row.tokens, row.logprobs = self.sample_turn(row.start, sampling, row.seed, row.limit)
        has_ended = row.tokens[-1] in self.policy.eos_token_ids
        stopped = has_ended or ends_with_stop(tokenizer, row, sampling.stop)
        return read_completion(tokenizer, row.tokens, row.logprobs, stopped)

    @abstractmethod
    def sample_turn(self, prompt: Prompt, sampling: Sampling, seed: int, limit: int) -> tuple[list[int], list[float]]:
        """Return the tokens of one turn, at least one, and their log-probabilities.

        Args:
            prompt: everything before the turn.
            sampling: how tokens are drawn.
            seed: the result depends on it alone, and on the weights.
            limit: the most tokens; the turn ends earlier with a token of `policy.eos_token_ids`, or a text of
                `sampling.stop`.
        """
