"""Generates the next iteration's completions while the current rollout is trained on."""

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
    """One generation in a background thread. Checkpoints store its result, because its weights are gone on resuming.

    If the engine crashes there is no result, and the next iteration generates with its current weights.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lit-rlvr-ahead")
        self._ids: list[str] = []
        self._result: Future[list[list[Completion]]] | list[list[Completion]] | None = None

    def start(
        self, engine: SyncedEngine, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> None:
        """Start generating; until `wait`, nothing else may use the engine."""
        self._ids = [prompt.sample.id for prompt in prompts]
        self._result = self._thread.submit(engine.generate_once, prompts, sampling, seeds)

    def wait(self) -> None:
        """Block until the engine is free."""
        if not isinstance(self._result, Future):
            return
        try:
            self._result = self._result.result()
        except Exception as error:
            self._result = None
            _log.warning("the engine crashed on the rollout ahead: %s; generating it again", first_line(error))

    def take(self, prompts: Sequence[Prompt]) -> list[list[Completion]] | None:
        """Return and forget the completions, if they are of these prompts; else None."""
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
