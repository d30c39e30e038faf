"""A run's checkpoints, whole or sharded: found, read and written, and whose they are."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor, nn

from lit_rlvr.common.launch import is_first_process
from lit_rlvr.common.log import log
from lit_rlvr.common.run_files import checkpoint_folder, list_checkpoints
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.common.user_code import is_user_code
from lit_rlvr.errors import UserError, first_line

REST = "meta.pt"
WEIGHTS, MOMENTS, REFERENCE = "state_dict", "optimizer", "reference"
"""Parts of a checkpoint's shards; `REFERENCE` only if the reference was replaced by a later policy. An averaged teacher
has one too, see `frozen_parts`."""


def is_sharded(path: Path) -> bool:
    return (path / REST).is_file()


class ShardWriter(dcp.FileSystemWriter):
    """Writes a rank's shards, and raises the `OSError` of a full disk, which torch hides behind a `RuntimeError`."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause = error.__context__
            if isinstance(cause, OSError) or "inline_container" in str(error):  # torch's writer of zip files
                raise cause if isinstance(cause, OSError) else OSError(first_line(error)) from None
            raise


def load_shares(tensors: dict[str, Any], folder: Path, alone: bool = False) -> None:
    """Fill (nested) tensors in place from a checkpoint, by name.

    Args:
        tensors: names -> tensors or further dicts.
        folder: the checkpoint's.
        alone: this rank reads full tensors by itself; otherwise call it on every rank, which reads its shards.

    Raises:
        UserError: the folder is damaged or lacks a tensor.
    """
    try:
        dcp.load(tensors, checkpoint_id=folder, no_dist=alone)
    except (dcp.CheckpointException, OSError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{folder} is not a readable checkpoint ({reason})") from error


def read_whole(folder: Path, part: str) -> dict[str, Tensor]:
    """Return the full tensors under `part` of a sharded checkpoint, on the CPU, by their names within `part`.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        index = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{folder} is not a readable checkpoint ({error})") from error
    shapes: dict[str, Any] = {}
    for name, entry in index.items():
        if name.startswith(f"{part}."):
            shapes[name] = entry
    tensors = {}
    for name, entry in shapes.items():
        tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    load_shares(tensors, folder, alone=True)
    whole = {}
    for name, tensor in tensors.items():
        whole[name.removeprefix(f"{part}.")] = tensor
    return whole


def numbered(state: dict[str, Any], moments: dict[str, Tensor]) -> dict[str, Any]:
    """Return an optimizer's `state_dict`, keyed by parameter number as the optimizer expects, instead of by name.

    Args:
        state: `param_groups`: one group, whose `params` are names.
        moments: each parameter's state tensors, keyed `<parameter>.<moment>`, such as `weight.exp_avg`.
    """
    (group,) = state["param_groups"]
    number = {name: k for k, name in enumerate(group["params"])}
    state_of_parameters: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in moments.items():
        name, _, moment = full_name.rpartition(".")
        state_of_parameters.setdefault(number[name], {})[moment] = tensor
    return {"state": state_of_parameters, "param_groups": [group | {"params": list(number.values())}]}


def named(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the inverse of `numbered`: key an optimizer's `state_dict` by the parameters' names."""
    (group,) = state["param_groups"]
    return {
        "state": {names[k]: moments for k, moments in state["state"].items()},
        "param_groups": [group | {"params": names}],
    }


CHECKPOINT_PARTS = ("rlvr", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step", "epoch")
"""Entries that every checkpoint of ours has."""


class CheckpointFiles(TorchCheckpointIO):
    """Lets strategies that keep the full weights on every rank also resume from sharded checkpoints."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = read_checkpoint(path)
        if is_sharded(Path(path)):
            moments = read_whole(Path(path), MOMENTS)
            checkpoint["optimizer_states"] = [numbered(checkpoint["optimizer_states"][0], moments)]
            for part, state in parts_in_shards(checkpoint).items():
                state["weights"] = read_whole(Path(path), part)
        return checkpoint


def frozen_parts(reference: Any, teachers: dict[str, Any]) -> dict[str, Any]:
    """Return the reference and the averaged teachers by the names of their parts of a checkpoint's shards."""
    return {REFERENCE: reference} | {f"teacher {label}".rstrip(): teacher for label, teacher in teachers.items()}


def parts_in_shards(checkpoint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the states of the reference and the teachers whose weights are in a checkpoint's shards, by part."""
    parts = frozen_parts(checkpoint["rlvr"]["reference"], checkpoint["rlvr"]["teachers"])
    shards = {}
    for part, state in parts.items():
        if state["version"] > 0:
            shards[part] = state
    return shards


def last_checkpoint(run: str | Path) -> Path:
    """Return a run's newest readable checkpoint; a warning names each newer one that cannot be read.

    Raises:
        UserError: there is none.
    """
    problem = f"{checkpoint_folder(run)} has no checkpoint (step-*.ckpt); run `lit-rlvr fit` into {run} first"
    for path in reversed(list_checkpoints(run)):
        try:
            read_rest(path)
        except UserError as error:
            problem = str(error)
            log.warning("%s: passed over", problem)
        else:
            return path
    raise UserError(problem)


def read_rest(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint of ours without reading its tensors: a file is memory-mapped, a folder's shards are left out.

    Raises:
        UserError: it is missing, damaged, or not one of ours.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"ckpt_path: there is no checkpoint '{path}'; use last or a file")
    file = path / REST if is_sharded(path) else path
    try:
        broken = _broken_part(str(file), os.stat(file).st_mtime_ns)
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path} is not a readable checkpoint ({first_line(error)})") from error
    if broken is not None:
        raise UserError(f"{path} is damaged: {broken} is not what was written")
    wanted = CHECKPOINT_PARTS if is_sharded(path) else (*CHECKPOINT_PARTS, WEIGHTS)
    if not isinstance(checkpoint, dict) or any(part not in checkpoint for part in wanted):
        raise UserError(f"{path} is not a checkpoint of lit-rlvr")
    return checkpoint


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint of ours with the full weights as `state_dict`; raises as `read_rest`."""
    checkpoint = read_rest(path)
    if is_sharded(Path(path)):
        return checkpoint | {WEIGHTS: read_whole(Path(path), WEIGHTS)}
    return checkpoint


@lru_cache(maxsize=8)
def _broken_part(path: str, changed: int) -> str | None:
    """Return the first member of a file whose checksum is wrong, which torch does not check; None if all are right."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def checkpoint_step(path: str | Path) -> int:
    """Return the optimizer step of a checkpoint; raises as `read_rest`."""
    return int(read_rest(path)["global_step"])


def run_identity(data: object, algorithm: object, advantage: object, policy: nn.Module) -> dict[str, str]:
    """Return the classes of data, algorithm and advantage, and a hash of the model's architecture."""
    shapes = sorted((name, tuple(p.shape)) for name, p in policy.named_parameters())
    return {
        "data": type(data).__name__,
        "algorithm": type(algorithm).__name__,
        "advantage": type(advantage).__name__,
        "model of": f"{type(policy.model).__name__} {derive_seed(str(shapes)):x}",
    }


NEW_RUN = (
    "or go on from its weights in a new run: `lit-rlvr export RUN --to FOLDER`, then model.init_args.model: FOLDER"
)
"""What to do if a run cannot be resumed with other settings or data."""


def check_identity(ours: dict[str, str], saved: dict[str, Any]) -> None:
    """Refuse a checkpoint of a different kind of run.

    Args:
        ours: what `run_identity` returns now.
        saved: contains what `run_identity` returned when the checkpoint was written.

    Raises:
        UserError: names what differs.
    """
    for key, value in ours.items():
        if saved[key] != value:
            raise UserError(
                f"ckpt_path: its run had {key} {saved[key]}, this one has {value}; resume with the same, {NEW_RUN}"
            )


def user_code() -> dict[str, str]:
    """Return the name of each imported module of the user's own, and a short hash of its file."""
    files = {}
    for name, module in list(sys.modules.items()):
        files[name] = getattr(module, "__file__", None) or ""
    hashes = {}
    for name, file in files.items():
        if name != "__main__" and file.endswith(".py") and is_user_code(file) and Path(file).is_file():
            hashes[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    return hashes


PROVENANCE = {"code": "code of your own", "validation": "validation data", "weights": "weights that it does not train"}
"""What numbers depend on besides the settings -> how a message names it."""


def warn_of_changes(saved: Mapping[str, dict[str, Any]], current: Mapping[str, dict[str, Any]]) -> None:
    """Log what a resumed run finds changed since its checkpoint.

    Args:
        saved: of the checkpoint, for each of `PROVENANCE` name -> hash or version, and the numbers of threads.
        current: of this run.
    """
    if not is_first_process():
        return
    for kind, what in PROVENANCE.items():
        before = saved.get(kind, {})
        after = current[kind]
        changed = sorted(name for name, value in before.items() if after.get(name, value) != value)
        if changed:
            names = ", ".join(changed)
            log.warning("resumed with changed %s: %s; earlier and later numbers may not compare", what, names)
    before = saved.get("threads", {})
    after = current["threads"]
    if before and after and before != after:
        log.warning(
            "resumed with a different number of torch's threads: %d -> %d; sums are rounded in another order, so "
            "weights may differ in their last bits; OMP_NUM_THREADS=%d keeps them",
            before["torch"],
            after["torch"],
            before["torch"],
        )
