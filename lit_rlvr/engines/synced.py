"""Owns an engine: starts it, syncs its weights, checks that they arrived, and restarts it when it crashes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from itertools import chain
from textwrap import shorten
from typing import Any

import torch

from lit_rlvr.common.log import log
from lit_rlvr.common.resuming import how_to_resume
from lit_rlvr.common.seeds import derive_seed, run_seed
from lit_rlvr.common.user_code import comes_from_library
from lit_rlvr.distributed.collectives import gather_objects, lost_peer, rank
from lit_rlvr.distributed.sharding import has_shards
from lit_rlvr.engines.base import EngineContext, RolloutEngine
from lit_rlvr.engines.turns import OnGroupDone, Turns
from lit_rlvr.errors import ResumableError, UserError, first_line
from lit_rlvr.policy.architecture import has_experts, layer_configs
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import training_autocast
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, Rollout

PROBE_TOKENS = 16
"""Tokens of a probe's completion."""
PROBE_GROUP_SIZE = 2
"""Completions of a probe's prompt."""


def probe_sampling(sampling: Sampling) -> Sampling:
    """Return the settings of a probe: up to `PROBE_TOKENS` tokens, without top-p, top-k or greedy decoding."""
    return replace(
        sampling.without_thought_budget().with_max_tokens(min(PROBE_TOKENS, sampling.max_tokens)),
        temperature=sampling.temperature or 1.0,
        top_p=1.0,
        top_k=0,
        stop=(),
    )


def probe_seeds(prompts: int) -> list[list[int]]:
    """Return the seeds of a probe's completions, which no rollout has."""
    seeds = []
    for p in range(prompts):
        seeds.append([derive_seed(run_seed(), "probe", p, g) for g in range(PROBE_GROUP_SIZE)])
    return seeds


def probe_prompts(prompts: Sequence[Prompt], together: bool = True) -> list[Prompt]:
    """Return up to three prompts for a probe, of different lengths where there are any.

    These are a middle one, the longest and the shortest. They are not sorted, so that an engine that mixes up the order
    of its groups is noticed.

    Args:
        prompts: this rank's.
        together: choose from the prompts of all ranks, and return the same ones on each; then call it on every rank.
    """
    own_sizes = [len(prompt.token_ids) for prompt in prompts]
    if together:
        by_rank = gather_objects(own_sizes)
        this_rank = rank()
    else:
        by_rank = [own_sizes]
        this_rank = 0
    sizes = sorted((length, r, k) for r, lengths in enumerate(by_rank) for k, length in enumerate(lengths))
    chosen = dict.fromkeys((sizes[len(sizes) // 2], sizes[-1], sizes[0]))  # without repeats
    rank_prompts = {}
    for size in chosen:
        if size[1] == this_rank:
            rank_prompts[size] = prompts[size[2]]
    gathered = rank_prompts
    if together:
        gathered = {}
        for part in gather_objects(rank_prompts):
            gathered |= part
    return [gathered[size] for size in chosen]


def check_engine(
    engine: RolloutEngine,
    policy: Policy,
    prompts: list[Prompt],
    sampling: Sampling,
    owner: SyncedEngine | None = None,
) -> float:
    """Sample completions with the engine and compare their log-probabilities with the trainer's.

    The trainer scores all groups at once, as in training, so that a group that is padded, packed or placed wrongly
    differs. Each completion is judged by itself: a mean over all of them would hide it.

    Args:
        engine: after a sync.
        policy: with the weights of that sync.
        prompts: of the probe.
        sampling: without top-p and top-k; at most `max_tokens` tokens of each completion are compared.
        owner: restarts the engine if it crashes on the completions; None = the crash is raised.

    Returns:
        How much a token's log-probability differs, in nats, in the completion that differs most: the largest difference
        of all tokens where the engine computes in float32, the mean in 16 bits, where rounding moves single tokens much
        further than the mean, and the median in a mixture of experts without `replay_routes`, where rounding sends
        single tokens to other experts.

    Raises:
        UserError: the difference is more than rounding: the engine holds stale or wrong weights.
    """
    groups = (owner or engine).generate(prompts, sampling, probe_seeds(len(prompts)))
    expected = trainer_logprobs(policy, prompts, groups, sampling, engine.compute_dtype)
    flips = not policy.replays_routes and any(map(has_experts, layer_configs(policy.model.config)))
    middle = torch.median if flips else torch.mean
    exact = engine.compute_dtype == torch.float32
    worst = 0.0
    completions = list(chain.from_iterable(groups))
    for completion, logprobs in zip(completions, expected, strict=True):
        differences = (logprobs - torch.tensor(completion.logprobs)).abs()
        difference = float(differences.max() if exact else middle(differences))
        # A mean of fewer tokens varies more.
        allowed = engine.probe_tolerance * (1 if exact else math.sqrt(PROBE_TOKENS / len(differences)))
        if not difference <= allowed:
            raise UserError(
                f"engine {engine.name}: its log-probabilities differ from the trainer's by "
                f"{'up to' if exact else f'a {middle.__name__} of'} {difference:.3g} nats (tolerance {allowed:.3g}) "
                "after a weight sync, so it samples from stale or wrong weights; "
                f"{'' if engine.name == 'hf' else 'use `rollout.engine: hf`, or '}report the model's name"
            )
        worst = max(worst, difference)
    return worst


@torch.no_grad()
def trainer_logprobs(
    policy: Policy,
    prompts: list[Prompt],
    groups: list[list[Completion]],
    sampling: Sampling,
    dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:
    """Return the (n,) log-probabilities of each completion's tokens under the trainer's weights, computed in `dtype`.

    Args:
        policy: the trainer's.
        prompts: the prompts.
        groups: completions of each prompt, equally many.
        sampling: whose temperature and banned tokens hold.
        dtype: compute type.
    """
    rollout = Rollout.unscored(prompts, groups, sampling, len(groups[0]))
    with training_autocast(policy.device, dtype):
        logp, _ = policy.logprobs(rollout, list(range(len(rollout.token_ids))))  # (B, T)
    lengths = []
    for group in groups:
        for completion in group:
            lengths.append(len(completion.token_ids))
    logprobs = []
    for row, length in zip(logp, lengths, strict=True):
        logprobs.append(row[:length].float().cpu())
    return logprobs


class SyncedEngine:
    """Owner of an engine: it generates with a given version of the weights, and survives crashes.

    When the engine raises, it is restarted, given its weights, probed, and given the same batch with the same seeds.
    Groups that were already complete, and may have been scored, are kept.

    Args:
        engine: the engine that generates; it is started here.
        probe_every: weight syncs from one probe to the next; 0 = probe the first alone.
        max_restarts: crashes in a row that it survives (`rollout.safeguards.max_engine_restarts`).
    """

    def __init__(self, engine: RolloutEngine, probe_every: int = 10, max_restarts: int = 3) -> None:
        self.engine = engine
        self._probe_every = probe_every
        self._max_restarts = max_restarts
        self._context: EngineContext | None = None
        self._policy: Policy | None = None  # whose weights it holds
        self._version: Hashable | None = None  # of these weights; None = it may hold others
        self.synced_versions: dict[str, Any] = {}  # the label of each sync's weights -> their version
        self._syncs = 0  # those that can be probed
        self._restarts = 0  # since the last complete batch
        self._is_probed = True  # False = restarted and not probed yet
        self._has_generated = False
        self._first_crash: str | None = None  # before it has, without its numbers
        self.start_seconds = 0.0

    @property
    def started(self) -> bool:
        return self._context is not None

    def start(self, context: EngineContext) -> None:
        """Start the engine; call it once.

        Raises:
            UserError: a library that the engine uses cannot start with the model; the message names both.
        """
        began = time.perf_counter()
        try:
            self.engine.start(context)
        except Exception as error:
            if isinstance(error, UserError) or lost_peer(error) or not comes_from_library(error):
                raise
            reason = shorten(f"{type(error).__name__}: {error}", 300, placeholder="...")
            raise UserError(f"engine {self.engine.name} cannot start with {context.folder}: {reason}") from error
        self.start_seconds = time.perf_counter() - began
        self._context = context

    def sync_weights(
        self,
        policy: Policy,
        version: Hashable,
        prompts: Sequence[Prompt] | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
    ) -> None:
        """Sync the engine to this version of a policy's weights, unless it has it.

        Collective: call it on every rank.

        Args:
            policy: the policy.
            version: identifies the policy and its weights.
            prompts: this rank's; if a probe is due, it uses some of all ranks'. None = do not probe these weights.
            sampling: for these prompts, so that the probe fits into the engine.

        Raises:
            UserError: the probe failed, or the engine has crashed too often.
        """
        if self._version == version:
            return
        self._policy = policy
        self._version = None
        if prompts is not None:
            self._syncs += 1
        is_first = prompts is not None and self._syncs == 1
        if is_first and policy.has_zero_adapters():
            with policy.nonzero_adapters():  # else an engine that leaves adapters out would pass
                self._send(policy, prompts, sampling)
        due = is_first or (self._probe_every > 0 and self._syncs % self._probe_every == 0)
        self._send(policy, prompts if due else None, sampling)
        self._version = self.synced_versions[self.engine.label] = version

    def restart_if(self, crash: str | None, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Take note of how `generate_stream` ended: restart and probe the engine if it crashed (None = it did not).

        Raises:
            UserError: it has crashed too often, or a probe failed.
        """
        if crash is None:
            self._restarts = 0
        while crash is not None:
            self._restart_after(crash)
            crash = catch_crash(lambda: self._probe_after_restart(prompts, sampling))

    def _send(self, policy: Policy, probed: Sequence[Prompt] | None, sampling: Sampling) -> None:
        self._restart_after(catch_crash(lambda: self.engine.sync(policy)))
        if probed is not None:
            self._restart_after(catch_crash(self.engine.check_copies))
            check_engine(self.engine, policy, probe_prompts(probed), probe_sampling(sampling), owner=self)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
        turns: Turns | None = None,
    ) -> list[list[Completion]]:
        """Generate as `RolloutEngine.generate` does, with its arguments, and restart the engine when it crashes.

        Raises:
            UserError: the engine has crashed too often, or a probe failed.
        """
        groups_by_prompt: dict[int, list[Completion]] = {}

        def keep(p: int, group: list[Completion]) -> None:
            self.check_labels(group)
            if p not in groups_by_prompt:
                groups_by_prompt[p] = group
                if done is not None:
                    done(p, group)

        def attempt() -> None:
            self._probe_after_restart(prompts, sampling)
            before = dict(groups_by_prompt)
            more: dict[str, Any] = {} if turns is None else {"turns": turns}  # an engine may know single turns only
            groups = self.engine.generate(prompts, sampling, seeds, keep, **more)
            for group in groups:  # an engine need not report them before
                self.check_labels(group)
            groups_by_prompt.update(dict(enumerate(groups)) | before)
            if groups:
                self._has_generated = True

        while (crash := catch_crash(attempt)) is not None:
            self._restart_after(crash)
        if prompts:
            self._restarts = 0
        groups = []
        for p in range(len(prompts)):
            groups.append(groups_by_prompt[p])
        return groups

    def check_labels(self, group: list[Completion]) -> None:
        """Refuse tokens that other weights than the last sync's sampled.

        Then the engine was restarted, or somebody else uses it. Raising restores the weights, as after a crash.
        """
        labels: set[str] = set()
        for completion in group:
            labels.update(completion.labels)
        if labels - {self.engine.label}:
            raise RuntimeError(
                f"it answered with other weights ({', '.join(sorted(labels))}) than those of the last sync "
                f"({self.engine.label})"
            )

    def sleep(self) -> None:
        """Free memory, if the engine can, until the next weights are synced."""
        if self.engine.sleep():
            self._version = None

    def close(self) -> None:
        """Free memory and end processes. Failing to do so only warns, so as not to hide why the run ends."""
        if self._context is not None:
            self._close_engine()
        self._context = self._version = None

    def _close_engine(self) -> None:
        unclosed = catch_crash(self.engine.close)
        if unclosed is not None:
            log.warning("engine %s could not be closed: %s", self.engine.name, unclosed)

    def _restart_after(self, crash: str | None) -> None:
        """Restart the engine until it runs; do nothing if `crash` is None.

        Raises:
            UserError: it has crashed too often, or twice alike before its first completions, or this process cannot
                restore its weights alone.
        """
        while crash is not None:
            if self._sharded and not self.engine.keeps_weights:
                raise ResumableError(
                    f"engine {self.engine.name} crashed: {crash}; with sharded weights no process can restart it "
                    f"alone; {how_to_resume()}"
                )
            kind = re.sub(r"0x[\da-f]+|\d+", "", crash)
            if not self._has_generated and kind == self._first_crash:
                raise UserError(
                    f"engine {self.engine.name} crashed: {crash}; it crashed alike before, and has generated nothing "
                    "yet, so it is not restarted again; use another engine (rollout.engine: hf runs every model)"
                )
            self._first_crash = kind
            if self._restarts == self._max_restarts:
                raise ResumableError(
                    f"engine {self.engine.name} crashed: {crash}; after {self._restarts} restart(s) in a row "
                    f"(rollout.safeguards.max_engine_restarts) the run ends; {how_to_resume()}"
                )
            self._restarts = self._restarts + 1
            self._is_probed = False
            log.warning(
                "engine %s crashed: %s; restart %d of %d",
                self.engine.name,
                crash,
                self._restarts,
                self._max_restarts,
            )
            crash = catch_crash(self._start_anew)

    def _start_anew(self) -> None:
        assert self._context is not None and self._policy is not None, "start() and sync_weights() come first"
        if not self.engine.keeps_weights:
            self._close_engine()
        self.engine.start(self._context)
        self.engine.restore(self._policy)

    def _probe_after_restart(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Probe the engine once after a restart, on this rank alone.

        Skipped with sharded weights, whose log-probabilities need all ranks, and put off without prompts.
        """
        if self._is_probed or self._sharded or not prompts:
            return
        assert self._policy is not None, "sync_weights() comes first"
        check_engine(self.engine, self._policy, probe_prompts(prompts, together=False), probe_sampling(sampling))
        self._is_probed = True

    @property
    def _sharded(self) -> bool:
        return self._policy is not None and has_shards(self._policy.parameters())


def catch_crash(action: Callable[[], None]) -> str | None:
    """Run `action`; return how it crashed, or None. The memory that a crash holds is free when this returns.

    Raises:
        UserError: the user has to fix something, so trying again would not help.
        Exception: another rank is lost (see `lost_peer`).
    """
    try:
        action()
    except UserError:
        raise
    except Exception as error:
        if lost_peer(error):
            raise
        return first_line(error)
    return None
