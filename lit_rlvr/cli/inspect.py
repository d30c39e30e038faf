"""Descriptions of a config before training: `fit --dry-run`, `preview` and `split`."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.rule import Rule

from lit_rlvr.advantages import REGISTRY
from lit_rlvr.commands.plan.gpus import GIB
from lit_rlvr.commands.plan.strategies import describe_run
from lit_rlvr.common.files import check_new, write_atomically
from lit_rlvr.common.terminal import Terminal, show_result
from lit_rlvr.datamodules.reading.readers import as_row
from lit_rlvr.environments.base import environment_fingerprint
from lit_rlvr.errors import UserError, check_all, check_within, shown
from lit_rlvr.objectives import resolve_correction
from lit_rlvr.policy.precision import compute_dtype
from lit_rlvr.rollout.callback import RolloutCallback, rollout_of
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.run.progress import Budget
from lit_rlvr.training.optimizer import (
    check_schedule,
    total_steps,
    train_whole_rollouts,
    updates_of,
    warn_of_high_rate,
    warn_of_long_warmup,
)  # fmt: skip
from lit_rlvr.types import Prompt, Sample

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.datamodules.base import Split
    from lit_rlvr.run.warm_start import WarmStart


SHOWN_PROMPTS = 2
"""Number of prompts that a dry run shows."""


@dataclass(frozen=True)
class PlannedRun:
    """The parts of a run that a config describes, before the weights load."""

    trainer: Trainer
    module: RLVRModule
    data: PromptDataModule
    warm_start: WarmStart

    @property
    def rollout(self) -> RolloutCallback:
        return rollout_of(self.trainer)

    @property
    def limits(self) -> dict[str, int]:
        """The limits of the run's budget, perhaps none."""
        return dict(self._callback(Budget).limits)

    def _callback(self, kind: type) -> Any:
        return next(c for c in self.trainer.callbacks if isinstance(c, kind))  # type: ignore[attr-defined]

    @property
    def sizes_on_device(self) -> tuple[int, int, str, str]:
        """Prompts per step, processes, precision and device."""
        device = self.trainer.strategy.root_device.type
        return self.data.prompts_per_rollout, self.trainer.world_size, str(self.trainer.precision), device

    @property
    def steps(self) -> int | None:
        """The optimizer steps of the whole run, without regard to its budget; None without a limit."""
        return total_steps(self.trainer, len(self.data.train_dataloader()), updates_of(self.module))

    @property
    def iterations(self) -> int | None:
        """The most rollouts of the whole run; None without a limit on steps, epochs or samples."""
        counts = [] if self.steps is None else [math.ceil(self.steps / updates_of(self.module))]
        samples = self.limits.get("samples")
        if samples is not None:
            fresh = self.module.advantage.needs_reference and self.module.reference.rollouts == "fresh"
            per_rollout = self.data.prompts_per_rollout * self.rollout.group_size * (2 if fresh else 1)
            counts.append(math.ceil(samples / per_rollout))
        return min(counts, default=None)

    def prepare(self) -> None:
        """Read the data, and refuse all at once whatever can be refused before the weights load.

        Raises:
            UserError: with a message for each problem.
        """
        rollout, data = self.rollout, self.data
        data.use_model(self.module)

        def check_data() -> None:
            data.setup("fit")
            check_all(
                lambda: check_schedule(self.module.optim, self.steps),
                lambda: rollout.check_data(self.module, data),
                lambda: self._callback(RunCheckpoint).check_metrics(self.trainer, self.module, data),
                lambda: self.warm_start.check(data, rollout.environment is not None, rollout.sampling),
                lambda: rollout.replay.rollouts_from and rollout.replay_source(self.trainer, self.module, data),
            )

        check_all(lambda: rollout.check_sizes(self.module, *self.sizes_on_device), check_data)

    def settings(self) -> dict[str, Any]:
        """Return the parts and limits of the run by name."""
        trainer, module, data, rollout = self.trainer, self.module, self.data, self.rollout
        dtype = compute_dtype(str(trainer.precision))
        correct = next((reward for reward in rollout.rewards if reward.correct_from), None)
        tokens, iterations = self.limits.get("tokens"), self.iterations
        limits = [] if tokens is None else [f"until {tokens} tokens are generated"]
        if iterations is not None:
            passes = iterations * data.prompts_per_rollout / len(data.prompts["train"])
            limits.append(
                f"{iterations * updates_of(module)} optimizer steps, {iterations} iterations, {passes:.3g} passes over "
                "the training prompts"
            )
        return {
            "run folder": shown(trainer.default_root_dir),
            "algorithm": type(module).__name__,
            "advantage": _advantage_name(module.advantage),
            "model": f"{module.model} ({module.model_folder})",
            "data": describe_set(data, "train"),
            "validation": [describe_set(d, "validation") for d in data.validated if d.prompts["validation"]],
            "rewards": [f"{reward.weight:g} x {reward.name}" for reward in rollout.rewards],
            "correct": correct.name if correct else RULE_OF_CORRECT,
            "environment": environment_fingerprint(rollout.environment),
            "engine": rollout.generator.name,
            "strategy": type(trainer.strategy).__name__,
            "devices": f"{trainer.world_size} x {trainer.strategy.root_device.type}",
            "precision": str(trainer.precision),
            "importance correction": resolve_correction(
                module.importance.correction, rollout.generator.is_exact(dtype)
            ),
            "warm start": f"at most {self.warm_start.steps} supervised steps" if self.warm_start.steps else None,
            "sequences per rollout": data.prompts_per_rollout * rollout.group_size,
            "steps": ", at most ".join(limits) or "no limit: the run ends with Ctrl-C, or after trainer.max_time",
        }

    def sizes(self) -> dict[str, Any]:
        """Return the numbers of iterations, sequences and validations of the whole run."""
        trainer, data, rollout = self.trainer, self.data, self.rollout
        iterations, every = self.iterations, rollout.validate_every_rollouts
        during = (iterations or 0) // every if every else 1  # by epochs counts as once, at the end
        samples = [len(d.prompts["validation"]) * rollout.samples_of(d.name) for d in data.validated]
        return {
            "iterations": iterations,
            "prompts": data.prompts_per_rollout,
            "sequences": data.prompts_per_rollout * rollout.group_size,
            "validations": 1 + during if trainer.limit_val_batches else 0,
            "validation_completions": sum(samples),
        }

    def memory(self) -> dict[str, Any]:
        """Return the estimated memory of one process as the run is configured, in GiB."""
        job, plan = describe_run(self.trainer, self.module, self.data)
        return {
            "parameters": job.whole.parameters,
            "trained": (job.adapted if job.lora else job.whole).trained,
            "way": plan.name,
            "terms": {name: value / GIB for name, value in plan.terms.items() if value},
            "needs": plan.needs / GIB,
            "of": plan.gpus.gib,
            "fits": plan.fits,
        }


def dry_run(run: PlannedRun) -> None:
    """Read the data, check everything that can be checked without weights, and print what `fit` would do.

    Raises:
        UserError: `fit` would refuse the run, too.
    """
    train_whole_rollouts(run.trainer, updates_of(run.module))
    run.prepare()
    run.rollout.log_sizes(run.module, *run.sizes_on_device, data=run.data)
    run.rollout.warn_of_long_answers(run.data)
    steps = None if run.iterations is None else run.iterations * updates_of(run.module)
    warn_of_high_rate(run.module.lr, run.module.optim)
    warn_of_long_warmup(run.module.lr, run.module.optim, steps)
    found = {
        "run": run.settings(),
        "sizes": run.sizes(),
        "memory": run.memory(),
        "prompts": describe_prompts(run.data, "train", SHOWN_PROMPTS, None),
    }
    show_result(found, lambda: print_run(found))


RULE_OF_CORRECT = (
    "as the first reward that reports it says, else where the first reward is 1; `correct_from: true` on a reward "
    "chooses another"
)
"""The source of `correct` without a `correct_from`."""


def _advantage_name(advantage: object) -> str:
    """Return the registered name of an estimator, or else the name of its class or function."""
    registered = next((name for name, cls in REGISTRY.items() if type(advantage) is cls), None)
    return registered or str(getattr(advantage, "__name__", type(advantage).__name__))


def print_run(found: Mapping[str, Any]) -> None:
    """Print a dry run as readable text."""
    console = Terminal()
    for name, value in found["run"].items():
        for line in value if isinstance(value, list) else [value]:
            if line is not None:
                console.print(f"{name}: {line}", soft_wrap=True)
    used = found["memory"]
    too_much = ", WHICH IS TOO MUCH (`lit-rlvr plan` proposes a strategy or adapters that fit)"
    terms = ", ".join(f"{name} {value:.2f}" for name, value in used["terms"].items())
    console.print(
        f"memory: {used['parameters']:,} parameters, {used['trained']:,} trained ({used['way']}); about "
        f"{used['needs']:.2f} of {used['of']:.1f} GiB on each device{'' if used['fits'] else too_much}: {terms}",
        soft_wrap=True,
    )
    print_prompts(found["prompts"])


IMAGE_SOFTWARE = "lit-rlvr preview"
"""Mark in the pictures of `preview`, which a later preview may replace."""


def describe_prompts(data: PromptDataModule, split: Split, count: int, folder: Path | None) -> dict[str, Any]:
    """Return the first prompts of a set with their token counts and answers, and a summary of the set.

    Args:
        count: number of prompts.
        folder: folder for their images, created if there are any; None = save none.

    Raises:
        UserError: there is no such set, or `count` is not positive.
    """
    check_within("[1, inf)", "preview", prompts=count)
    data.setup("test" if split == "test" else "fit")
    prompts = data.prompts[split]
    if not prompts:
        raise UserError(f"--split: there is no {split} set")
    return {
        "set": f"{data.name} {split}",
        "count": len(prompts),
        "prompts": [_describe_prompt(data, prompt, folder) for prompt in prompts[:count]],
        "summary": describe_set(data, split),
    }


def _describe_prompt(data: PromptDataModule, prompt: Prompt, folder: Path | None) -> dict[str, Any]:
    sample = prompt.sample
    return {
        "id": sample.id,
        "text": data.render(sample),
        "tokens": len(prompt.token_ids),
        "answer": sample.answer,
        "aliases": list(sample.aliases),
        "options": list(sample.options),
        "category": sample.category,
        "images": [describe_image(data, prompt, i, folder) for i in range(len(sample.images))],
    }


def print_prompts(found: dict[str, Any]) -> None:
    """Print the result of `describe_prompts`."""
    console = Terminal()
    split = found["set"].rpartition(" ")[2]
    for number, prompt in enumerate(found["prompts"], 1):
        console.print(Rule(f"{split} {number} of {found['count']}: {prompt['id']}", align="left", characters="-"))
        console.print(prompt["text"], soft_wrap=True)
        console.print(Rule(characters="-"))
        facts = [f"{prompt['tokens']} tokens", f"answer {prompt['answer']!r}"]
        facts += [f"or {' or '.join(map(repr, prompt['aliases']))}"] * bool(prompt["aliases"])
        facts += [f"options {prompt['options']}"] * bool(prompt["options"])
        facts += [f"category {prompt['category']!r}"] * bool(prompt["category"])
        for k, image in enumerate(prompt["images"], 1):
            place = f", {image['file']}" if image["file"] else ""
            facts.append(f"image {k}: {image['tokens']} tokens, {image['width']} x {image['height']} pixels{place}")
        console.print("; ".join(facts), soft_wrap=True)
    console.print(found["summary"], soft_wrap=True)


def describe_image(data: PromptDataModule, prompt: Prompt, number: int, folder: Path | None) -> dict[str, Any]:
    """Return the size of an image of a prompt as the model sees it, and the file in `folder` that it is saved to."""
    pixels = data.prepare(prompt).pixels
    assert pixels is not None, "the prompt has images"
    image = pixels.images[number]
    path = None if folder is None else _save_image(image, f"{prompt.sample.id}-{number + 1}", folder)
    tokens = len(pixels.placeholders[number])
    return {"tokens": tokens, "width": image.width, "height": image.height, "file": path and str(path)}


def _save_image(image: Image.Image, name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^\w.-]+", "_", name) + ".png")
    if path.exists() and Image.open(path).info.get("Software") != IMAGE_SOFTWARE:
        raise UserError(f"--out: {path} exists and is not a picture of `lit-rlvr preview`; choose another folder")
    made_by = PngInfo()
    made_by.add_text("Software", IMAGE_SOFTWARE)
    image.save(path, pnginfo=made_by)
    return path


def describe_set(data: PromptDataModule, split: Split) -> str:
    """Return a line with the number and lengths of the prompts, and the number of rows left out."""
    lengths = sorted(len(prompt.token_ids) for prompt in data.prompts[split])
    left_out = f"{len(data.bad_rows[split])} rows could not be used, {len(data.too_long[split])} prompts were too long"
    spread = f"{lengths[0]} to {lengths[-1]} tokens, median {median(lengths):g}"
    return f"{data.name} {split}: {len(lengths)} prompts of {spread}; {left_out}"


_log = logging.getLogger("lit_rlvr")
SETS: tuple[Split, ...] = ("train", "validation", "test")


def write_split(data: PromptDataModule, out: Path) -> list[Path]:
    """Write the rows of each set to a file, including rows that training drops for their length.

    Args:
        out: folder for `train.jsonl`, `validation.jsonl` and `test.jsonl`.

    Returns:
        The files written. Paths of images in them are relative to `out`.

    Raises:
        UserError: one of the files exists, or there are no rows.
    """
    for split in SETS:
        check_new(out / f"{split}.jsonl", "--out")
    from_file = any(location is not None for location in data.locations.values())
    written = []
    for split in SETS:
        samples = data.load(split)
        if samples:
            path = out / f"{split}.jsonl"
            rows = [_with_moved_images(as_row(sample, from_file), sample, out) for sample in samples]
            write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            _log.info("%s: %d rows", path, len(rows))
            written.append(path)
    if not written:
        raise UserError(f"data: {data.name} has no rows to write")
    return written


def _with_moved_images(row: dict[str, Any], sample: Sample, out: Path) -> dict[str, Any]:
    """Return a row whose relative image paths start from the folder `out` instead of that of its file."""
    sources = getattr(sample.images, "sources", ())
    paths = [Path(source) for source in sources if isinstance(source, str | Path)]

    def moved(cell: Any) -> Any:
        if isinstance(cell, Mapping):
            return {name: moved(value) for name, value in cell.items()}
        if isinstance(cell, list):
            return [moved(value) for value in cell]
        if isinstance(cell, str) and cell and not Path(cell).is_absolute():
            for path in paths:
                if path.parts[-len(Path(cell).parts) :] == Path(cell).parts:
                    return os.path.relpath(path, out)
        return cell

    return {name: moved(cell) for name, cell in row.items()} if paths else row
