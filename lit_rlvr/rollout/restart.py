"""An engine that crashes is started anew, and the run goes on with the same batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_rlvr.distributed import lost_peer
from lit_rlvr.errors import UserError, in_one_line
from lit_rlvr.policy import Policy
from lit_rlvr.rollout.engine import Done, EngineContext, RolloutEngine
from lit_rlvr.rollout.probe import check_engine
from lit_rlvr.types import Completion, Prompt, Sampling

_log = logging.getLogger("lit_rlvr")


class RestartingEngine(RolloutEngine):
    """Another engine. When that raises, it is closed, started, given its weights, probed, and asked for the same batch
    with the same seeds; groups that were complete, which may be scored already, stay as they were.

    Args:
        engine: what generates.
        limit: restarts without a whole batch in between.
    """

    def __init__(self, engine: RolloutEngine, limit: int) -> None:
        if limit < 0:
            raise UserError(f"rollout.max_engine_restarts: {limit} is negative")
        self.engine, self.limit = engine, limit
        self.exact, self.shares_weights = engine.exact, engine.shares_weights
        self._context: EngineContext | None = None
        self._restarts = 0  # since the last whole batch
        self._proven = True  # False: started anew and not probed yet

    def start(self, context: EngineContext) -> None:
        self._context = context
        self.engine.start(context)

    def follow(self, policy: Policy) -> None:
        super().follow(policy)
        self.engine.follow(policy)

    def sync(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        self._restart_after(crash_of(lambda: self.engine.sync(named_parameters)))

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: Done | None = None,
    ) -> list[list[Completion]]:
        found: dict[int, list[Completion]] = {}

        def keep(p: int, group: list[Completion]) -> None:
            if p not in found:
                found[p] = group
                if done is not None:
                    done(p, group)

        def attempt() -> None:
            self._probe(prompts, sampling, seeds)
            before = dict(found)
            found.update(dict(enumerate(self.engine.generate(prompts, sampling, seeds, keep))) | before)

        while (crash := crash_of(attempt)) is not None:
            self._restart_after(crash)
        self._restarts = 0
        return [found[p] for p in range(len(prompts))]

    def rest(self) -> bool:
        return self.engine.rest()

    def close(self) -> None:
        self.engine.close()

    @property
    def probe_tolerance(self) -> float:
        return self.engine.probe_tolerance

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.engine.compute_dtype

    @property
    def name(self) -> str:
        return self.engine.name

    def _restart_after(self, crash: str | None) -> None:
        """Until the engine runs; nothing after no crash.

        Raises:
            UserError: it has crashed too often, or this process alone does not have its weights.
        """
        while crash is not None:
            if self._sharded and not self.engine.keeps_weights:
                raise UserError(
                    f"engine {self.name} crashed: {crash}; with sharded weights no process can start it anew alone, "
                    "go on with --ckpt_path last"
                )
            if self._restarts == self.limit:
                raise UserError(
                    f"engine {self.name} crashed: {crash}; after {self.limit} restart(s) in a row "
                    "(rollout.max_engine_restarts) the run ends, go on with --ckpt_path last"
                )
            self._restarts, self._proven = self._restarts + 1, False
            _log.warning("engine %s crashed: %s; restart %d of %d", self.name, crash, self._restarts, self.limit)
            unclosed = None if self.engine.keeps_weights else crash_of(self.engine.close)
            if unclosed is not None:
                _log.warning("engine %s could not be closed: %s", self.name, unclosed)
            crash = crash_of(self._bring_up)

    def _bring_up(self) -> None:
        assert self._context is not None and self.policy is not None, "start() and follow() come first"
        self.engine.start(self._context)
        self.engine.restore(self.policy)

    def _probe(self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> None:
        """Once after a restart: it holds the policy's weights. (Sharded ones give no log-probabilities alone.)"""
        if self._proven or self._sharded:
            return
        assert self.policy is not None, "follow() comes first"
        longest = max(prompts, key=lambda p: len(p.token_ids))
        plain = replace(sampling, temperature=sampling.temperature or 1.0, top_p=1.0, top_k=0)
        short = replace(plain, max_tokens=min(16, plain.max_tokens))
        check_engine(self.engine, self.policy, longest, short, seeds[0][0])
        self._proven = True

    @property
    def _sharded(self) -> bool:
        return self.policy is not None and any(isinstance(weight, DTensor) for weight in self.policy.parameters())


def crash_of(action: Callable[[], None]) -> str | None:
    """Run something; how it crashed, if it did. The memory that a crash holds is free again when this returns.

    Raises:
        UserError: what it says is the user's to mend, and would come back.
        RuntimeError: another rank has gone.
    """
    try:
        action()
    except UserError:
        raise
    except Exception as error:
        if lost_peer(error):
            raise
        return in_one_line(error)
    return None
