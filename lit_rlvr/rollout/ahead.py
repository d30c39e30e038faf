"""The next iteration's completions, generated while this one is trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lit_rlvr.errors import first_line
from lit_rlvr.rollout.synced_engine import SyncedEngine
from lit_rlvr.types import Completion, Prompt, Sampling

_log = logging.getLogger("lit_rlvr")


class Ahead:
    """One generation in a thread of its own. Checkpoints hold its result: the weights it came from are gone by then.

    After a crash there is no result, and the next iteration generates with the weights of then.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lit-rlvr-ahead")
        self._ids: list[str] = []
        self._result: Future[list[list[Completion]]] | list[list[Completion]] | None = None

    def start(
        self, engine: SyncedEngine, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> None:
        """Begin; the engine belongs to this generation until `wait`."""
        self._ids = [prompt.sample.id for prompt in prompts]
        self._result = self._thread.submit(engine.generate_once, prompts, sampling, seeds)

    def wait(self) -> None:
        """Until the engine is free again."""
        if not isinstance(self._result, Future):
            return
        try:
            self._result = self._result.result()
        except Exception as error:
            self._result = None
            _log.warning("the engine crashed on the rollout ahead: %s; it is generated anew", first_line(error))

    def take(self, prompts: Sequence[Prompt]) -> list[list[Completion]] | None:
        """The completions of these prompts, once; None if they were not generated."""
        self.wait()
        found, self._result = self._result, None
        same = self._ids == [prompt.sample.id for prompt in prompts]
        return found if same and not isinstance(found, Future) else None

    def state_dict(self) -> dict[str, Any]:
        self.wait()
        assert not isinstance(self._result, Future)
        groups = [[vars(completion) for completion in group] for group in self._result or []]
        return {"ids": self._ids, "groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ids = state["ids"]
        self._result = [[Completion(**values) for values in group] for group in state["groups"]] or None
