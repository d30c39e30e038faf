"""Engines for tests: one with weights of its own, and one that crashes; and what tests of real ones share."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tiny import ENDS, byte_tokenizer, plain_logprobs, start_engine, tiny_llama
from torch import nn
from transformers import PreTrainedModel

from lit_rlvr.engines.base import EngineContext, OnGroupStarted, RolloutEngine
from lit_rlvr.engines.client import VLLMServer
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.synced import probe_seeds
from lit_rlvr.engines.transfer import FileTransfer
from lit_rlvr.engines.turns import OnGroupDone, Row, Turns
from lit_rlvr.options import Lora
from lit_rlvr.policy.adapters import add_adapters
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt


def is_probe(seeds: Sequence[Sequence[int]]) -> bool:
    """Return whether these seeds are those of a probe, which no rollout has."""
    return [list(group) for group in seeds] == probe_seeds(len(seeds))


def hf_engine(model: PreTrainedModel | None = None, max_sequences: int = 64, ends: Sequence[int] = ENDS) -> HFEngine:
    """A started engine that decodes with a model."""
    engine = HFEngine(max_sequences)
    start_engine(engine, Policy(model or tiny_llama(), tuple(ends)))
    return engine


class Copying(HFEngine):
    """Decodes with a copy of the weights that it makes at each sync, as vLLM does."""

    exact = False
    shares_weights = False

    def start(self, context: EngineContext) -> None:
        super().start(context)
        self.copy = load_policy(context.folder)
        super().sync(self.copy)
        self.sampled_with: list[torch.Tensor] = []

    def sync(self, policy: Policy) -> None:
        self.copy.load_state_dict(policy.state_dict())
        super().sync(self.copy)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
    ) -> list[list[Completion]]:
        if not is_probe(seeds):
            self.sampled_with.append(next(self.copy.parameters()).detach().clone())
        return super().generate(prompts, sampling, seeds, done)


class Streaming(Copying):
    """Decodes group after group in the threads that ask, and takes new weights in between, as servers do.

    Attributes:
        held: sample id -> what its group waits for before its sampling ends; dropping the group sets it.
        endless: the ids of those whose sampling never ends.
        begun: the label of the weights with which each group began, in this order, with its sample id.
    """

    concurrent = True
    in_process = False

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, threading.Event] = {}
        self.endless: set[str] = set()
        self.begun: list[tuple[str, str]] = []
        self._syncs = 0
        self._turn = threading.RLock()

    @property
    def label(self) -> str:
        return f"weights-{self._syncs}"

    def sync(self, policy: Policy) -> None:
        with self._turn:
            super().sync(policy)
            self._syncs += 1

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
        turns: Turns | None = None,
    ) -> list[list[Completion]]:
        with self._turn:
            groups = HFEngine.generate(self, prompts, sampling, seeds, None, turns)
            return [[replace(c, labels=(self.label,) * c.length) for c in group] for group in groups]

    def generate_stream(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        started: OnGroupStarted,
        done: OnGroupDone,
        turns: Turns | None = None,
    ) -> None:
        def one(p: int) -> None:
            with self._turn:
                started(p, self.held.get(prompts[p].sample.id, threading.Event()).set)
                self.begun.append((self.label, prompts[p].sample.id))
                (group,) = self.generate([prompts[p]], sampling, [seeds[p]])
            if prompts[p].sample.id in self.held:
                self.held[prompts[p].sample.id].wait(30)
            if prompts[p].sample.id not in self.endless:
                done(p, group)

        if turns is not None:  # which know whole batches only
            with self._turn:
                super().generate_stream(prompts, sampling, seeds, started, done, turns)
            return
        with ThreadPoolExecutor(len(prompts)) as threads:
            list(threads.map(one, range(len(prompts))))


class Scripted(HFEngine):
    """Says the given turns in place of sampled ones, but for probes.

    Args:
        script: the turns of every completion.
    """

    def __init__(self, script: Sequence[str]) -> None:
        super().__init__()
        self.script = script

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
        turns: Turns | None = None,
    ) -> list[list[Completion]]:
        if turns is None:
            return super().generate(prompts, sampling, seeds, done)
        tokenizer = self.context.tokenizer
        turns.begin(prompts, sampling, seeds)
        rows = {(p, g): Row(p, g, prompts[p], seed, 0) for p, group in enumerate(seeds) for g, seed in enumerate(group)}

        def speak(row: Row) -> None:
            text = self.script[row.turn]
            ids = (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
            turns.stopped(row.p, row.g, Completion(text, ids, "stop", (0.0,) * len(ids)))

        for row in rows.values():
            turns.opening(row.p, row.g)
            speak(row)
        while turns.waiting:
            for p, g, answer in turns.answers(1):
                if isinstance(answer, Completion):
                    rows[p, g].whole = answer
                else:
                    rows[p, g].next_turn(answer)
                    speak(rows[p, g])
        return [[rows[p, g].get() for g in range(len(group))] for p, group in enumerate(seeds)]


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

    def sync(self, policy: Policy) -> None:
        if self._crashes("sync"):
            raise RuntimeError("the engine is dead")
        super().sync(policy)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
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


@torch.no_grad()
def change(policy: nn.Module, relative: float, seed: int = 1) -> None:
    """Change every weight a little."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter += relative * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)


def adapted(folder: Path, lora: Lora | None = None, adapter: Path | None = None) -> Policy:
    """A policy with other weights than the folder's, and adapters that change its output."""
    policy = load_policy(str(folder))
    change(policy, 0.2)
    add_adapters(policy.model, lora or Lora(rank=3, alpha=6), folder=adapter)
    change_adapters(policy, 0)
    return policy


@torch.no_grad()
def change_adapters(policy: Policy, seed: int) -> None:
    """Change every trained adapter, as training does."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if ".lora_" in name and parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def assert_logprobs_are_the_policys(
    policy: Policy, groups: list[list[Completion]], prompts: Sequence[Prompt], sampling: Sampling
) -> None:
    """Assert that completions have the log-probabilities of a plain forward pass, to 1e-4."""
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            expected, _ = plain_logprobs(policy.model, prompt.token_ids, completion.token_ids, sampling)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def flat(groups: list[list[Completion]]) -> list[tuple[int, ...]]:
    """The tokens of all completions."""
    return [completion.token_ids for group in groups for completion in group]


class KilledInItsFourthUpdate(FileTransfer):
    """Ends its process in the fourth update, when it has paused the server."""

    updates = 0

    def _load(self, servers: Sequence[VLLMServer], *args: Any) -> None:
        self.updates += 1
        if self.updates == 4:
            servers[0].pause()
            os.kill(os.getpid(), signal.SIGKILL)
        super()._load(servers, *args)


def check_thought_budget(
    engine: RolloutEngine,
    model: PreTrainedModel,
    unopened: Sequence[Prompt],
    sampling: Sampling,
    seeds: Sequence[Sequence[int]],
) -> None:
    """Thoughts that the prompts open are closed after 5 tokens, if they are that long, and the answer follows; with
    `at_budget: end`, completions with such thoughts end there, truncated, and the others are the same."""
    sampling = replace(sampling, max_tokens=24, max_thought_tokens=5)
    prompts = [replace(prompt, prefill="<think>\n") for prompt in unopened]
    mark = byte_tokenizer()("\n</think>\n\n").input_ids
    cut = 0
    closed = engine.generate(prompts, sampling, seeds)
    for prompt, group in zip(prompts, closed, strict=True):
        for completion in group:
            expected, _ = plain_logprobs(model, prompt.token_ids, completion.token_ids, sampling)
            sampled = torch.tensor(completion.from_model)
            found = torch.tensor(completion.logprobs)
            torch.testing.assert_close(found[sampled], expected.cpu()[sampled], atol=1e-4, rtol=1e-4)
            assert not found[~sampled].any() and len(completion.token_ids) <= sampling.max_tokens
            if completion.sampled:
                cut += 1
                written = [id for id, own in zip(completion.token_ids, completion.sampled, strict=True) if not own]
                assert (written, completion.sampled[:5], not completion.sampled[5]) == (mark, (True,) * 5, True)
                assert completion.text.count("</think>") == 1 and replace(completion, prefill="<think>\n").answer
    assert cut
    ended = engine.generate(prompts, replace(sampling, at_budget="end"), seeds)
    for before, after in zip(chain(*closed), chain(*ended), strict=True):
        if before.sampled:
            assert after.token_ids == before.token_ids[:5] and after.truncated and not after.sampled
            assert not replace(after, prefill="<think>\n").answer
        else:
            assert (after.token_ids, after.finish_reason) == (before.token_ids, before.finish_reason)
    others = [completion for group in engine.generate(unopened, sampling, seeds) for completion in group]
    assert not any(completion.sampled for completion in others)
    assert any(len(completion.token_ids) > 5 for completion in others)
    longest = max(others, key=lambda completion: len(completion.token_ids))
    across = byte_tokenizer().decode(longest.token_ids[3:7])
    stopped = engine.generate(unopened, replace(sampling, stop=(across,)), seeds)
    assert longest.token_ids[:7] in [completion.token_ids for group in stopped for completion in group]
