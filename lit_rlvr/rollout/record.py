"""The record of a run: the rollouts that it trained on, and the source that lets another run train on them.

A rollout that was sampled while training went on cannot be generated again. With its record, the run can be repeated
bit for bit, and other losses can be trained on the same rollouts.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_rlvr.common.arguments import check_within, option_group
from lit_rlvr.common.files import flush_to_disk, write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.common.paths import shown
from lit_rlvr.distributed.collectives import gather_objects, rank, world_size
from lit_rlvr.distributed.sharding import weights_sha256
from lit_rlvr.engines.turns import read_completion
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.rollout.assemble import GROUP_FIELDS, TOKEN_FIELDS, tokens_in_loss
from lit_rlvr.rollout.source import RolloutSource
from lit_rlvr.sampling import Sampling
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.types import Completion, Prompt, PromptBatch, Rollout, Turn

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule


FORMAT = 1
"""Version of the files."""


@option_group("rollout.replay")
@dataclass(frozen=True)
class Replay:
    """The record of a run's rollouts, or the run whose record this one trains on.

    Args:
        record: GiB of disk for `record/` of the run folder: the rollouts that the run trained on, for `rollouts_from`.
            The record ends when they are used up. null: 1 with `staleness` or an `Agent`, whose rollouts cannot be
            generated again; else 0, no record, because the run itself can be repeated.
        rollouts_from: folder of a run with a record. This run trains on its rollouts in the same order, perhaps with
            another loss, and generates none; only validation needs the engine and the rewards.
    """

    record: float | None = None
    rollouts_from: str | None = None

    def __post_init__(self) -> None:
        check_within("[0, inf)", "rollout.replay", record=self.record)


class Record:
    """The folder `record/` of a run: what a replay must agree with, in `run.json`, and the rollout of each iteration
    and rank, in `iteration-NNNNNN-rank-N.npz`.

    Args:
        run_folder: the run's folder.
        limit: most bytes to write; the record ends before the iteration that would exceed them.
    """

    def __init__(self, run_folder: Path, limit: int = 0) -> None:
        self.run_folder = run_folder
        self.folder = run_folder / "record"
        self._left = limit // world_size()
        self._is_open = True

    def __len__(self) -> int:
        """Return the number of iterations that all ranks have, without a gap."""
        number = 0
        while all(self._path(number + 1, r).is_file() for r in range(world_size())):
            number += 1
        return number

    def _path(self, iteration: int, rank_index: int | None = None) -> Path:
        return self.folder / f"iteration-{iteration:06d}-rank-{rank() if rank_index is None else rank_index}.npz"

    def begin(
        self, iteration: int, settings: dict[str, Any], model: nn.Module, versions: dict[str, str] | None = None
    ) -> None:
        """Begin the record, or continue it after an iteration; a resumed run trains later iterations again.

        Collective: call it on every rank.

        Args:
            iteration: rollouts that the run has trained on so far.
            settings: what a replay must agree with, in addition to the first weights of the `model`.
            model: the policy, whose first weights a replay must share.
            versions: of the teachers' weights, which a replay may change.
        """
        if iteration == 0:
            settings = settings | first_weights(model)
        if rank() == 0:
            if iteration == 0:
                write_atomically(self.folder / "run.json", json.dumps(settings | (versions or {}), indent=2) + "\n")
            for path in self.folder.glob("iteration-[0-9]*.npz"):
                if path >= self._path(iteration + 1):  # the first rank's comes first
                    path.unlink()
        recorded = self._recorded()
        differs = len(self) < iteration or any(recorded.get(name) != value for name, value in settings.items())
        if any(gather_objects(iteration > 0 and differs)):  # also waits for the first rank
            self._end(iteration + 1, "earlier iterations are not there, or had other settings")
        self._left -= sum(path.stat().st_size for path in self.folder.glob(f"iteration-*-rank-{rank()}.npz"))

    def add(self, iteration: int, rollout: Rollout, cursor: dict[str, int], updates: int) -> None:
        """Add this rank's rollout of an iteration, if there is room.

        Collective: call it on every rank.

        Args:
            iteration: its number, from 1.
            rollout: this rank's rollout.
            cursor: the data's position after the iteration.
            updates: optimizer steps before it.

        Raises:
            UserError: the file cannot be written.
        """
        if not self._is_open:
            return
        content = BytesIO()
        path = self._path(iteration)
        arrays: dict[str, Any] = pack_rollout(rollout, {"cursor": cursor, "updates": updates})
        np.savez(content, **arrays)
        self._left -= content.tell()
        if any(gather_objects(self._left < 0)):
            self._end(iteration, "its disk space is used up (rollout.replay.record)")
        elif any(gather_objects(_has_observed_images(rollout))):
            self._end(iteration, "images that an environment or agent shows are not recorded")
        else:
            try:
                write_atomically(path, content.getvalue())
                flush_to_disk(path)  # before the checkpoint after this iteration
                flush_to_disk(self.folder)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"{shown(path)} cannot be written: {reason}; set rollout.replay.record: 0") from error

    def _end(self, iteration: int, reason: str) -> None:
        self._is_open = False
        if rank() == 0:
            log.warning("%s ends before iteration %d: %s", shown(self.folder), iteration, reason)

    def check(self, settings: dict[str, Any]) -> None:
        """Refuse a record that does not agree with these settings of this run.

        Raises:
            UserError: names the first that differs, or there is no record.
        """
        recorded = self._recorded()
        if not recorded:
            is_there = (self.folder / "run.json").exists()
            raise self.error(
                "has a damaged record/run.json; restore it, or record the run again"
                if is_there
                else "holds no record of a run; record one with rollout.replay.record"
            )
        for name, value in settings.items():
            if name not in recorded:
                raise self.error(
                    f"is from another version of lit-rlvr: record/run.json lacks {name}, which is {value} in this run; "
                    "rename its former key there, or record the run again"
                )
            if recorded[name] != value:
                raise self.error(f"was recorded with {name} {recorded[name]}, this run has {value}; use the same")

    def check_gaps(self) -> None:
        """Refuse a record in which an iteration lacks a file, and a later iteration does not.

        Raises:
            UserError: names the first file that is missing.
        """
        after = len(self) + 1
        if any(path >= self._path(after + 1, 0) for path in self.folder.glob("iteration-[0-9]*.npz")):
            paths = []
            for r in range(world_size()):
                paths.append(self._path(after, r))
            missing = next(path for path in paths if not path.is_file())
            if after > 1:
                shorter = f", or delete these to train on the {after - 1} iteration(s) before it"
            else:
                shorter = ""
            lacking = missing.relative_to(self.run_folder)
            raise self.error(f"lacks {lacking}, and has later iterations; restore it{shorter}")

    def _recorded(self) -> dict[str, Any]:
        """Return the settings of the record; none if there is no record or they cannot be read."""
        try:
            return dict(json.loads((self.folder / "run.json").read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def read(self, iteration: int, *names: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what `pack_rollout` was given: `about`, and the arrays with these names, by default all.

        Raises:
            UserError: the file is damaged.
        """
        path = self._path(iteration)
        try:
            with np.load(path, allow_pickle=False) as file:
                return json.loads(bytes(file["about"])), {
                    name: torch.tensor(file[name]) for name in names or file.files
                }
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise self.error(f"is damaged: {path.name} ({first_line(error)})") from error

    def error(self, what: str) -> UserError:
        return UserError(f"rollout.replay.rollouts_from: {shown(self.run_folder)} {what}")


def first_weights(model: nn.Module) -> dict[str, str]:
    """Return the setting of the weights that a run begins with.

    Collective: call it on every rank.
    """
    return {"first weights": gather_objects(weights_sha256(model))[0][:16]}


def replay_settings(
    processes: int, group_size: int, data: PromptDataModule, sampling: Sampling, mask_truncated: bool
) -> dict[str, Any]:
    """Return the settings that a record and its replay must agree on, as JSON holds them."""
    settings = {
        "format": FORMAT,
        "processes": processes,
        "rollout.group_size": group_size,
        "data.prompts_per_rollout": data.prompts_per_rollout,
        "rollout.mask_truncated": mask_truncated,
    } | {f"rollout.sampling.{name}": value for name, value in vars(sampling).items()}
    return dict(json.loads(json.dumps(settings)))


KEYS = {"has_correct": "judged"}
"""Field of a rollout -> its key in a record, where they differ."""


def pack_rollout(rollout: Rollout, about: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return a rollout as arrays: numbers of the tokens without padding, and as JSON the rest, in `about`."""
    completions = list(chain.from_iterable(rollout.completions))
    about = about | {
        "ids": [prompt.sample.id for prompt in rollout.prompts],
        "prompts": [prompt.token_ids for prompt in rollout.prompts],
        "lengths": [len(completion.token_ids) for completion in completions],
        "sequences": [completion.sequences for completion in completions],
        "width": rollout.token_ids.shape[1],
        "finish_reasons": [completion.finish_reason for completion in completions],
        "statuses": rollout.statuses,
        "weights": rollout.weights,
        "exact": rollout.exact,
        "kept": None if rollout.kept is None else list(rollout.kept.items()),
        "repeats": rollout.repeats,
        "turns": [list(map(vars, completion.turns)) for completion in completions],
    }
    routes = [completion.routes for completion in completions if completion.routes is not None]
    sampled = []
    for c in completions:
        if c.sampled:
            sampled.append(torch.tensor(c.sampled))
        else:
            sampled.append(torch.ones(c.length, dtype=torch.bool))
    inside = _inside(about["lengths"], about["width"])
    tensors = {name: getattr(rollout, name) for name in (*TOKEN_FIELDS, *GROUP_FIELDS)}
    tensors |= {f"part/{name}": part for name, part in rollout.parts.items()} | {"sampled": torch.cat(sampled)}
    tensors["routes"] = torch.cat(routes) if routes else None
    arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    for name, values in tensors.items():
        if values is not None:
            if name in TOKEN_FIELDS:
                values = values[inside]
            arrays[KEYS.get(name, name)] = (values.int() if values.dtype == torch.long else values).numpy()
    return arrays


def _unpack_completions(
    about: dict[str, Any], arrays: dict[str, Tensor], inputs: Sequence[int], tokenizer: Any
) -> list[Completion]:
    """Return the completions of a record, with their texts decoded again.

    Args:
        about: what the record says of the rollout.
        arrays: its tensors.
        inputs: the tokens that the model read of each completion and its prompt, which have routes.
        tokenizer: the model's.
    """
    lengths = about["lengths"]
    if "routes" in arrays:
        routes: Sequence[Tensor | None] = arrays["routes"].split(list(inputs))
    else:
        routes = [None] * len(lengths)
    rows = zip(
        arrays["token_ids"].split(lengths),
        arrays["rollout_logprobs"].split(lengths),
        arrays["sampled"].split(lengths),
        routes,
        about["finish_reasons"],
        about.get("turns", [[]] * len(lengths)),
        about.get("sequences") or [()] * len(lengths),
        strict=True,
    )
    completions = []
    for token_ids, logprobs, from_model, of_inputs, reason, turns, sequences in rows:
        completion = read_completion(tokenizer, token_ids.tolist(), logprobs.tolist(), reason == "stop")
        sampled: tuple[bool, ...] = ()
        if not from_model.all():
            sampled = tuple(from_model.tolist())
        as_turns = tuple(map(_as_turn, turns))
        completions.append(
            replace(completion, sampled=sampled, routes=of_inputs, turns=as_turns, sequences=tuple(sequences))
        )
    return completions


def unpack_rollout(
    about: dict[str, Any], arrays: dict[str, Tensor], prompts: list[Prompt], sampling: Sampling, tokenizer: Any
) -> Rollout:
    """Return the rollout that `pack_rollout` was given, with the texts of its completions decoded again."""
    inside = _inside(about["lengths"], about["width"])
    size = arrays["rewards"].shape[1]
    fields: dict[str, Any] = {}
    for name in GROUP_FIELDS:
        if KEYS.get(name, name) in arrays:
            fields[name] = arrays[KEYS.get(name, name)]
    for name in TOKEN_FIELDS:
        if name in arrays:
            if arrays[name].dtype == torch.int:
                flat = arrays[name].long()
            else:
                flat = arrays[name]
            fields[name] = _padded(flat, inside)
    inputs = []
    for row, length in enumerate(about["lengths"]):
        inputs.append(len(prompts[row // size].token_ids) + length - 1)
    completions = _unpack_completions(about, arrays, inputs, tokenizer)
    return Rollout(
        prompts=prompts,
        completions=[completions[p * size : (p + 1) * size] for p in range(len(prompts))],
        parts={name.removeprefix("part/"): part for name, part in arrays.items() if name.startswith("part/")},
        sampling=sampling,
        kept=None if about["kept"] is None else dict(about["kept"]),
        **{name: about[name] for name in ("statuses", "weights", "exact", "repeats")},
        **fields,
    )


def _as_turn(fields: dict[str, Any]) -> Turn:
    """Return a turn as JSON holds it."""
    places = {}
    for name in ("span", "observed"):
        places[name] = tuple(fields.get(name, ()))
    return Turn(**fields | places)


def _inside(lengths: Sequence[int], width: int) -> Tensor:
    """Return (B, T) bool, True for the tokens of completions, False for padding."""
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def _padded(flat: Tensor, inside: Tensor) -> Tensor:
    """Return the values (N,) of the tokens `inside` (B, T) in their places, 0 in the others."""
    return torch.zeros(inside.shape, dtype=flat.dtype).masked_scatter(inside, flat)


def _has_observed_images(rollout: Rollout) -> bool:
    """Return whether an environment has added images to prompts or completions, or an agent may have changed them."""
    rows = list(chain.from_iterable(rollout.completions))
    if any(turn.observed for row in rows for turn in row.turns):  # an agent's
        return any(prompt.pixels or prompt.sample.images for prompt in rollout.prompts) or any(r.pixels for r in rows)
    pairs = []
    for p in rollout.prompts:
        pairs.append((p.pixels, p.sample.images))
    in_prompts = any(pixels is not None and len(pixels.placeholders) > len(images) for pixels, images in pairs)
    return in_prompts or any(row.pixels is not None for row in rows)


class ReplaySource(RolloutSource):
    """Returns the rollouts that another run has recorded, instead of sampling.

    Args:
        record: the other run's.
        module: the algorithm.
        data: where prompts are found again by the ids of their samples.
        sampling: how the recorded completions were sampled.
        mask_truncated: leave truncated completions out of the loss.
    """

    generates = False

    def __init__(
        self, record: Record, module: RLVRModule, data: PromptDataModule, sampling: Sampling, mask_truncated: bool
    ) -> None:
        self.record = record
        self.module = module
        self.data = data
        self.sampling = sampling
        self.mask_truncated = mask_truncated
        self.iterations = len(record)
        self.extra_completions = []
        self.metrics = {"time/sync": 0.0, "time/generate": 0.0, "time/score": 0.0}  # the run folder needs them
        self._prompts = {prompt.sample.id: prompt for prompt in data.prompts["train"]}

    def check(self, settings: dict[str, Any], prompts_grow: bool) -> None:
        """Refuse a record of other settings or other data.

        Args:
            settings: this run's.
            prompts_grow: an environment may have added to prompts.

        Raises:
            UserError: names what differs.
        """
        self.record.check(settings)
        self.record.check_gaps()
        for iteration in range(1, self.iterations + 1):
            about, _ = self.record.read(iteration, "about")
            for name, token_ids in zip(about["ids"], about["prompts"], strict=True):
                if name not in self._prompts:
                    raise self.record.error(f"was trained on {name}, which is not in the data")
                if not prompts_grow and self._prompts[name].token_ids != token_ids:
                    raise self.record.error(f"was trained on {name} with other tokens than in the data")
        if not self.iterations:
            raise self.record.error("has recorded no iteration")
        if self.module.reference_completions is not None and "reference_rewards" not in self.record.read(1)[1]:
            raise self.record.error("has no rewards of a reference, which model.advantage needs")
        if self.module.plan.replays_routes and "routes" not in self.record.read(1)[1]:
            raise self.record.error("was recorded without rollout.replay_routes; leave the option off")

    def begin(self) -> None:
        """Refuse a run that begins with other weights than the recorded one.

        Collective: call it on every rank.
        """
        if self.module.iteration == 0:
            self.record.check(first_weights(self.module.policy.model))

    def next(self, batch: PromptBatch) -> Rollout:
        about, arrays = self.record.read(self.module.iteration + 1)
        ready = {}  # the others lack their images
        for prompt in batch.prompts:
            ready[prompt.sample.id] = prompt
        prompts = []
        for name, token_ids in zip(about["ids"], about["prompts"], strict=True):
            prompts.append(replace(ready.get(name) or self.data.prepare(self._prompts[name]), token_ids=token_ids))
        sampling = self.sampling.with_banned(self.module.policy.placeholder_ids)
        rollout = unpack_rollout(about, arrays, prompts, sampling, self.module.tokenizer)
        sampled = _padded(arrays["sampled"], _inside(about["lengths"], about["width"]))
        has_teacher = self.module.teachers.options is not None  # only one of the runs may have a teacher
        rollout.mask = tokens_in_loss(sampled, rollout.completions, rollout.statuses, self.mask_truncated, has_teacher)
        if rollout.versions is not None:  # as old as they were
            rollout.versions += self.module.updates - about["updates"]
        batch.cursor = about["cursor"]
        return rollout
