"""The state of a run: what a checkpoint has besides weights and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from lit_rlvr.training.terms import Term

ADDED = {"unjudged", "noise_scale"}
"""Keys of parts that checkpoints of earlier versions lack."""


class SavedPart(Protocol):
    """A part of a run whose state a checkpoint has."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> None: ...


class RunState:
    """The parts of a run that a checkpoint has, by their keys there.

    A part of a group that a checkpoint lacks is new to the run, and begins as it is.

    Args:
        parts: key -> part.
        groups: key -> what returns parts by name, which may differ from start to start.
    """

    def __init__(
        self, parts: Mapping[str, SavedPart], groups: Mapping[str, Callable[[], Mapping[str, SavedPart]]]
    ) -> None:
        self.parts = parts
        self.groups = groups

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each part; of a group without the parts that have none.

        Collective: call it on every rank.
        """
        states: dict[str, Any] = {}
        for key, part in self.parts.items():
            states[key] = part.state_dict()
        for key, parts_of in self.groups.items():
            of_group = {}
            for name, part in parts_of().items():
                of_group[name] = part.state_dict()
            states[key] = {name: state for name, state in of_group.items() if state}
        return states

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for key, part in self.parts.items():
            if key in states or key not in ADDED:
                part.load_state_dict(states[key])
        for key, parts_of in self.groups.items():
            saved = states.get(key, {})
            for name, part in parts_of().items():
                if name in saved:
                    part.load_state_dict(saved[name])


def named_terms(terms: Sequence[Term]) -> dict[str, Term]:
    """Return the terms, each by its class and its number among those of that class."""
    kinds = [type(term).__name__ for term in terms]
    return {f"{kind} {kinds[:n].count(kind)}": terms[n] for n, kind in enumerate(kinds)}
