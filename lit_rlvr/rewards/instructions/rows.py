"""Reads the instructions of a row: names and arguments, in the forms of the published data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_rlvr.common.columns import as_object
from lit_rlvr.common.did_you_mean import did_you_mean
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.instructions.ifbench import find_ifbench_check
from lit_rlvr.rewards.instructions.ifeval import IFEVAL, Check
from lit_rlvr.rewards.instructions.iftrain import IFTRAIN
from lit_rlvr.rewards.instructions.tulu import TULU
from lit_rlvr.types import Sample

CHECKS: dict[str, Check] = {**IFEVAL, **IFTRAIN, **TULU}
NAMES = ("instruction_id_list", "instruction_id")
"""Keys of the names of a row's instructions: IFEval's and IFBench's, then open-instruct's."""
TULU_COLUMNS = ("func_name", "constraint_type", "constraint")
FORMS = (
    "the forms are {instruction_id_list: [...], kwargs: [...]} (IFEval, IFBench), {instruction_id: [...], kwargs: "
    "[...]} (open-instruct) and {func_name: ..., ...} (Tulu 3)"
)


@dataclass(frozen=True)
class Instruction:
    """A constraint on a text.

    Args:
        name: its name in the data.
        arguments: its arguments.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def find_check(self) -> Check:
        """Return the function that checks a text.

        Raises:
            UserError: there is none of this name, or the arguments are not its own.
        """
        check = CHECKS.get(self.name)
        if check is None:
            near = did_you_mean(self.name, CHECKS)
            return find_ifbench_check(self.name, f"; {near}" if near else "")
        try:
            inspect.signature(check).bind("", **self.arguments)
        except TypeError as error:
            raise UserError(f"the instruction {self.name} has other arguments ({error})") from error
        return check


def instructions_of(sample: Sample) -> list[Instruction]:
    """Return the instructions of a row: those in its columns, as IFEval has them, else those in its answer.

    Raises:
        UserError: neither has instructions in a known form.
    """
    where = sample.source or sample.id
    if any(name in sample.row for name in NAMES):
        value: Any = dict(sample.row)
    else:
        value = as_object(sample.label)
    while isinstance(value, list) and len(value) == 1:
        value = as_object(value[0])
    try:
        instructions = _read(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}; {FORMS}") from error
    for instruction in instructions:
        try:
            instruction.find_check()
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return instructions


def _read(value: Any) -> list[Instruction]:
    """Read an object in one of the known forms.

    Raises:
        ValueError: it is in no known form.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"no instructions in {str(value)[:80]!r}")
    if "func_name" in value:
        arguments = {}
        for key, given in value.items():
            if key not in TULU_COLUMNS:
                arguments[key] = given
        return [Instruction(value["func_name"], _whole(arguments))]
    names = next((as_object(value[key]) for key in NAMES if value.get(key) is not None), None)
    if not isinstance(names, list) or not names:
        raise ValueError("no list of instructions")
    all_arguments = as_object(value.get("kwargs"))
    if not isinstance(all_arguments, Sequence) or len(all_arguments) != len(names):
        raise ValueError(f"{len(names)} instructions and kwargs of another number")
    instructions = []
    for name, given in zip(names, map(as_object, all_arguments), strict=True):
        instructions.append(Instruction(name, _whole(given or {})))
    return instructions


def _whole(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments without nulls, and with whole numbers that Arrow made floats as integers."""
    given = {}
    for key, value in arguments.items():
        if value is not None:
            given[key] = value
    whole_numbers = {}
    for key, value in given.items():
        if isinstance(value, float) and value.is_integer():
            whole_numbers[key] = int(value)
        else:
            whole_numbers[key] = value
    return whole_numbers
