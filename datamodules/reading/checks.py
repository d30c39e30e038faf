"""Checks of option values and of the return values of a user's `rows` and `sample`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lit_rlvr.common.arguments import type_text
from lit_rlvr.common.did_you_mean import did_you_mean
from lit_rlvr.common.user_code import defined_at
from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.errors import UserError, refuse_all
from lit_rlvr.types import Sample

FIELDS = ("prompt", "answer", "image", "video", "id", "category", "options", "reward")
"""The fields that `columns` can map by default."""


def check_columns(columns: Mapping[str, str], fields: Sequence[str]) -> None:
    """Refuse a `columns` mapping with an unknown field."""
    known = f"known fields: {', '.join(fields)}"
    problems = []
    for field in columns:
        if field not in fields:
            problems.append(f"columns: unknown field {field!r}; {did_you_mean(field, fields, known)}")
    refuse_all(problems)


FIELD_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "id": (str, "text"),
    "prompt": ((str, list), "text, or a list of messages"),
    "answer": (str, "text"),
    "images": (Sequence, "a list of images"),
    "row": (Mapping, "a dict"),
    "category": (str, "text"),
    "source": (str, "text"),
    "options": (tuple, "a tuple of texts"),
    "aliases": (tuple, "a tuple of texts"),
    "rewards": ((Mapping, type(None)), "a dict of reward -> weight, or None"),
}
"""Field of a `Sample` -> its type, and that type's name in messages."""


def require_sample(value: Any, function: Callable[..., Any], item: str) -> Sample | BadRow:
    """Return the value if it is a valid sample or a bad row.

    Args:
        value: what the function returned.
        function: the user's function.
        item: the item's name in the message.

    Raises:
        UserError: it is no sample, or a field has the wrong type; the message names the function, its file and line.
    """
    if isinstance(value, BadRow):
        return value
    if not isinstance(value, Sample):
        fault = f"must be a Sample(id=..., prompt=..., answer=...), not {type_text(value)}"
        raise UserError(f"{defined_at(function)}: {item} {fault}")
    for field, (wanted, name) in FIELD_TYPES.items():
        cell = getattr(value, field)
        if not isinstance(cell, wanted) or (field == "images" and isinstance(cell, str | bytes)):
            raise UserError(f"{defined_at(function)}: {item}: {field} must be {name}, not {type_text(cell)}")
    return value


def require_samples(values: Any, function: Callable[..., Any]) -> Iterator[Sample | BadRow]:
    """Check and yield the samples that `rows` returned; yield none if it returned None.

    Raises:
        UserError: the result is not iterable, or an item fails `require_sample`.
    """
    if values is None:
        return
    if not isinstance(values, Iterable):
        raise UserError(f"{defined_at(function)} must give Samples, not {type_text(values)}")
    for number, item in enumerate(values, 1):
        yield require_sample(item, function, f"item {number}")


def check_reward_names(named: Mapping[str, Iterable[str]], rewards: Sequence[str]) -> None:
    """Refuse rewards that a data set names and the run does not have; a run without rewards judges none.

    Args:
        named: name of a data set -> the rewards that judge its rows.
        rewards: names of the run's rewards.
    """
    if not rewards:
        return
    known = f"the rewards are {', '.join(rewards)} (rollout.rewards)"
    problems = []
    for set_name, names in named.items():
        for name in names:
            if name not in rewards:
                near = did_you_mean(name, rewards, known)
                problems.append(f"data.rewards of the set {set_name}: there is no reward {name!r}; {near}")
    refuse_all(problems)
