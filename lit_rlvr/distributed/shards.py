"""Sharded checkpoints: a folder with each rank's shards of the tensors, and `meta.pt` with everything else.

The shards are in the format of `torch.distributed.checkpoint`, whose index is a pickle: read only folders you trust.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from lit_rlvr.errors import UserError

REST = "meta.pt"
WEIGHTS, MOMENTS = "state_dict", "optimizer"


def is_sharded(path: Path) -> bool:
    return (path / REST).is_file()


def load_shares(tensors: dict[str, Any], folder: Path, alone: bool = False) -> None:
    """Fill (nested) tensors in place from a checkpoint, by name.

    Args:
        alone: this rank reads full tensors by itself; otherwise collective: every rank reads its shards.

    Raises:
        UserError: the folder is damaged or lacks a tensor.
    """
    try:
        dcp.load(tensors, checkpoint_id=folder, no_dist=alone)
    except (dcp.CheckpointException, OSError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{folder} is not a readable checkpoint ({reason})") from error


def read_whole(folder: Path, part: str) -> dict[str, Tensor]:
    """The full tensors under `part` of a sharded checkpoint, on the CPU, by their names within `part`.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        index = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{folder} is not a readable checkpoint ({error})") from error
    shapes: dict[str, Any] = {name: entry for name, entry in index.items() if name.startswith(f"{part}.")}
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in shapes.items()}
    load_shares(tensors, folder, alone=True)
    return {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items()}


def numbered(state: dict[str, Any], moments: dict[str, Tensor]) -> dict[str, Any]:
    """An optimizer's `state_dict`, keyed by parameter number as the optimizer expects, instead of by name.

    Args:
        state: `param_groups`: one group, whose `params` are names.
        moments: each parameter's state tensors, keyed `<parameter>.<moment>`, such as `weight.exp_avg`.
    """
    (group,) = state["param_groups"]
    number = {name: k for k, name in enumerate(group["params"])}
    found: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in moments.items():
        name, _, moment = full_name.rpartition(".")
        found.setdefault(number[name], {})[moment] = tensor
    return {"state": found, "param_groups": [group | {"params": list(number.values())}]}


def named(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The inverse of `numbered`: key an optimizer's `state_dict` by the parameters' names."""
    (group,) = state["param_groups"]
    return {
        "state": {names[k]: moments for k, moments in state["state"].items()},
        "param_groups": [group | {"params": names}],
    }
