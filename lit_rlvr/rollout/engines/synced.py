"""Owns an engine: starts it, syncs its weights, checks that they arrived, and restarts it when it crashes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from lit_rlvr.distributed.collectives import gather_objects, lost_peer
from lit_rlvr.errors import UserError, check_within, first_line
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import training_autocast
from lit_rlvr.rollout.engines.base import Done, EngineContext, RolloutEngine, Turns
from lit_rlvr.seeds import derive_seed, run_seed
from lit_rlvr.types import Completion, Prompt, Rollout, Sampling

PROBED = 16
"""Tokens of a probe."""


def probe_sampling(sampling: Sampling) -> Sampling:
    """Return the settings of a probe: up to `PROBED` tokens, without top-p, top-k or greedy decoding."""
    return replace(
        sampling,
        temperature=sampling.temperature or 1.0,
        top_p=1.0,
        top_k=0,
        max_tokens=min(PROBED, sampling.max_tokens),
        stop=(),
    )


def check_engine(
    engine: RolloutEngine,
    policy: Policy,
    prompt: Prompt,
    sampling: Sampling,
    seed: int,
    owner: SyncedEngine | None = None,
) -> float:
    """Sample a completion with the engine and compare its log-probabilities with the trainer's.

    Args:
        sampling: without top-p and top-k; at most `max_tokens` tokens are compared.
        owner: restarts the engine if it crashes on the completion; None = the crash is raised.

    Returns:
        How much a token's log-probability differs, in nats: the largest difference of all tokens where the engine
        computes in float32, the mean in 16 bits, where rounding moves single tokens much further than the mean.

    Raises:
        UserError: the difference is more than rounding: the engine holds stale or wrong weights.
    """
    completion = (owner or engine).generate([prompt], sampling, [[seed]])[0][0]
    ours = trainer_logprobs(policy, prompt, completion, sampling, engine.compute_dtype)
    differences = (ours - torch.tensor(completion.logprobs)).abs()
    if engine.compute_dtype == torch.float32:
        found, allowed, kind = float(differences.max()), engine.probe_tolerance, "up to"
    else:
        found, kind = float(differences.mean()), "a mean of"
        allowed = engine.probe_tolerance * math.sqrt(PROBED / len(differences))  # a mean of fewer varies more
    if not found <= allowed:
        raise UserError(
            f"engine {engine.name}: its log-probabilities differ from the trainer's by {kind} {found:.3g} nats "
            f"(tolerance {allowed:.3g}) after a weight sync, so it samples from stale or wrong weights; "
            "use `rollout.engine: hf`, or report the model's name"
        )
    return found


@torch.no_grad()
def trainer_logprobs(
    policy: Policy, prompt: Prompt, completion: Completion, sampling: Sampling, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return the (n,) log-probabilities of one completion's tokens under the trainer's weights, computed in `dtype`."""
    rollout = Rollout.unscored([prompt], [[completion]], sampling)
    with training_autocast(policy.device, dtype):
        return policy.logprobs(rollout, [0])[0][0].float().cpu()


_log = logging.getLogger("lit_rlvr")

_WOULD_COME_AGAIN = {"BackendCompilerFailed", "ImportError"}
"""Exceptions, torch's by name, that a restart of the engine would only raise again."""


class SyncedEngine:
    """Owner of an engine: it generates with a given version of the weights, and survives crashes.

    When the engine raises, it is restarted, given its weights, probed, and given the same batch with the same seeds.
    Groups that were already complete, and may have been scored, are kept.

    Args:
        engine: the engine that generates; it is started here.
        max_restarts: how many times in a row, without a complete batch in between.
        probe_every: compare the engine's log-probabilities with the policy's after the first sync that can be probed
            and after every this many; 0 = after the first only.
        resume: tells the user how to continue once the engine has crashed too often.
    """

    def __init__(
        self, engine: RolloutEngine, max_restarts: int = 3, probe_every: int = 10,
        resume: str = "resume with --ckpt_path last",
    ) -> None:  # fmt: skip
        check_within("[0, inf)", "rollout", max_engine_restarts=max_restarts, probe_every=probe_every)
        self.engine, self._max_restarts, self._probe_every, self._resume = engine, max_restarts, probe_every, resume
        self._context: EngineContext | None = None
        self._policy: Policy | None = None  # whose weights it holds
        self._version: Hashable | None = None  # of these weights; None = it may hold others
        self._syncs = 0  # those that can be probed
        self._restarts = 0  # since the last complete batch
        self._proven = True  # False = restarted and not probed yet

    @property
    def started(self) -> bool:
        return self._context is not None

    def start(self, context: EngineContext) -> None:
        """Start the engine, on the first call only."""
        if self._context is None:
            self.engine.start(context)
            self._context = context

    def sync_weights(
        self, policy: Policy, version: Hashable, prompts: Sequence[Prompt] | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
    ) -> None:  # fmt: skip
        """Sync the engine to this version of a policy's weights, unless it has it. Collective: call it on every rank.

        Args:
            version: identifies the policy and its weights.
            prompts: this rank's; if a probe is due, it uses the longest prompt of all ranks. None = do not probe these
                weights.
            sampling: for these prompts, so that the probe fits into the engine.

        Raises:
            UserError: the probe failed, or the engine has crashed too often.
        """
        if self._version == version:
            return
        self._policy, self._version = policy, None
        self._restart_after(crash_of(lambda: self.engine.sync(policy)))
        self._version = version
        if prompts is None:
            return
        self._syncs += 1
        if self._syncs == 1 or (self._probe_every and self._syncs % self._probe_every == 0):
            found = gather_objects(max(prompts, key=lambda p: len(p.token_ids), default=None))
            longest = max((p for p in found if p is not None), key=lambda p: len(p.token_ids))
            seed = derive_seed(run_seed(), "probe")
            check_engine(self.engine, policy, longest, probe_sampling(sampling), seed, owner=self)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: Done | None = None,
        turns: Turns | None = None,
    ) -> list[list[Completion]]:
        """Generate as `RolloutEngine.generate` does, and restart the engine when it crashes.

        Raises:
            UserError: the engine has crashed too often, or a probe failed.
        """
        found: dict[int, list[Completion]] = {}

        def keep(p: int, group: list[Completion]) -> None:
            if p not in found:
                found[p] = group
                if done is not None:
                    done(p, group)

        def attempt() -> None:
            self._probe_after_restart(prompts, sampling, seeds)
            before = dict(found)
            more: dict[str, Any] = {} if turns is None else {"turns": turns}  # an engine may know single turns only
            found.update(dict(enumerate(self.engine.generate(prompts, sampling, seeds, keep, **more))) | before)

        while (crash := crash_of(attempt)) is not None:
            self._restart_after(crash)
        if prompts:
            self._restarts = 0
        return [found[p] for p in range(len(prompts))]

    def generate_once(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        """Generate as `RolloutEngine.generate` does, without restarts: a crash is raised."""
        return self.engine.generate(prompts, sampling, seeds)

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
        unclosed = crash_of(self.engine.close)
        if unclosed is not None:
            _log.warning("engine %s could not be closed: %s", self.engine.name, unclosed)

    def _restart_after(self, crash: str | None) -> None:
        """Restart the engine until it runs; do nothing if `crash` is None.

        Raises:
            UserError: it has crashed too often, or this process cannot restore its weights alone.
        """
        while crash is not None:
            if self._sharded and not self.engine.keeps_weights:
                raise UserError(
                    f"engine {self.engine.name} crashed: {crash}; with sharded weights no process can restart it "
                    f"alone; {self._resume}"
                )
            if self._restarts == self._max_restarts:
                raise UserError(
                    f"engine {self.engine.name} crashed: {crash}; after {self._max_restarts} restart(s) in a row "
                    f"(rollout.max_engine_restarts) the run ends; {self._resume}"
                )
            self._restarts, self._proven = self._restarts + 1, False
            _log.warning(
                "engine %s crashed: %s; restart %d of %d", self.engine.name, crash, self._restarts, self._max_restarts
            )
            crash = crash_of(self._start_anew)

    def _start_anew(self) -> None:
        assert self._context is not None and self._policy is not None, "start() and sync_weights() come first"
        if not self.engine.keeps_weights:
            self._close_engine()
        self.engine.start(self._context)
        self.engine.restore(self._policy)

    def _probe_after_restart(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> None:
        """Probe the engine once after a restart, on this rank alone.

        Skipped with sharded weights, whose log-probabilities need all ranks, and put off without prompts.
        """
        if self._proven or self._sharded or not prompts:
            return
        assert self._policy is not None, "sync_weights() comes first"
        longest = max(prompts, key=lambda p: len(p.token_ids))
        check_engine(self.engine, self._policy, longest, probe_sampling(sampling), seeds[0][0])
        self._proven = True

    @property
    def _sharded(self) -> bool:
        return self._policy is not None and any(isinstance(weight, DTensor) for weight in self._policy.parameters())


def crash_of(action: Callable[[], None]) -> str | None:
    """Run `action`; returns how it crashed, or None. The memory that a crash holds is free when this returns.

    Raises:
        UserError: the user has to fix something or a compiler or import failed, so trying again would not help.
        Exception: another rank is lost (see `lost_peer`).
    """
    try:
        action()
    except UserError:
        raise
    except Exception as error:
        if lost_peer(error):
            raise
        if any(kind.__name__ in _WOULD_COME_AGAIN for kind in type(error).__mro__):
            raise UserError(f"engine: {first_line(error)}; it would fail again, so it is not restarted") from error
        return first_line(error)
    return None
