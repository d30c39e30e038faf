"""The files of a run: sample completions, thumbnails, the plot of its curves, and summary.json."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.common.arguments import ChecksArguments, check_within
from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.common.packages import import_matplotlib
from lit_rlvr.common.paths import shown
from lit_rlvr.common.run_files import VALIDATION, is_complete, thumbnail_path
from lit_rlvr.common.terminal import Terminal, one_line, table_of
from lit_rlvr.datamodules.reading.images import Images, film_strip, open_images
from lit_rlvr.distributed.sharding import weights_sha256
from lit_rlvr.errors import RunStopped, UserError
from lit_rlvr.media import Video
from lit_rlvr.rollout.callback import rollout_of
from lit_rlvr.run.advice import RunHistory
from lit_rlvr.run.health.course import CERTAIN
from lit_rlvr.run.health.falls import fallen
from lit_rlvr.run.health.progress import Validated, best_validation, progress
from lit_rlvr.run.loggers import callbacks_of, metric_rows, metrics_file, run_root
from lit_rlvr.run.monitor import why_stopped
from lit_rlvr.run.progress import Budget
from lit_rlvr.training.trace import Trace, drop_traces_after, write_trace
from lit_rlvr.types import Completion, Prompt, Rollout


def validate_now(trainer: Trainer) -> None:
    """Validate within `fit`, as Lightning does between two iterations, if there is a validation set."""
    if trainer.enable_validation:
        loop = trainer.fit_loop.epoch_loop.val_loop
        # restarting means resuming within a validation
        loop.restarting = False
        trainer.validating = True
        loop.run()
        trainer.training = True


THUMBNAIL_PIXELS = 256
"""Maximum length of a thumbnail's longer side, in pixels."""


def save_thumbnails(images: Sequence[Any], run_folder: str | Path) -> list[str]:
    """Store each of a sample's images once, as `images/<key>.png` in the run folder; of a video some frames in a row.

    Returns:
        The images' keys (hashes of their content), in order.
    """
    if isinstance(images, Images):
        opened = images
    else:
        opened = open_images(images, Path())
    for number, key in enumerate(opened.keys):
        path = thumbnail_path(run_folder, key)
        if not path.exists():
            picture = film_strip(opened[number])
            png = BytesIO()
            longest = THUMBNAIL_PIXELS * (3 if isinstance(opened.sources[number], Video) else 1)
            picture.thumbnail((longest, longest))
            picture.save(png, "PNG", optimize=True)
            write_atomically(path, png.getvalue())
    return list(opened.keys)


def _images_of_prompt(prompt: Prompt, run_folder: Path) -> dict[str, list[str]]:
    """Save the thumbnails of a prompt's images, and return their keys as a field of its record.

    They are those of the row, or all that the prompt has if an agent sent more.
    """
    images: Sequence[Any] = prompt.sample.images
    if prompt.pixels is not None and len(prompt.pixels.images) > len(images):
        images = prompt.pixels.images
    if not images:
        return {}
    return {"images": save_thumbnails(images, run_folder)}


def _added_images(completion: Completion, run_folder: Path) -> dict[str, list[str]]:
    """Save the thumbnails of the images that an environment or agent added behind the prompt; return their keys so."""
    if completion.pixels is None:
        return {}
    return {"added_images": save_thumbnails(completion.pixels.images, run_folder)}


PANELS = (
    ("Reward", (("rollout/reward", "training reward"),)),
    ("Accuracy", (("rollout/accuracy", "training rollouts"), ("val/accuracy", "validation"))),
    ("Entropy (nats per token)", (("train/entropy", "policy"),)),
    ("Completion length (tokens)", (("rollout/length", "training rollouts"),)),
)
TEACHER_PANEL = (
    "Divergence from the teacher (nats per token)",
    (("train/teacher_kl", "of sampled tokens"), ("train/teacher_divergence", "over the vocabulary")),
)
LOSS_PANEL = ("Loss (nats per token)", (("train/loss", "training"), ("val/loss", "validation")))
"""The panel of a run that samples nothing."""
STALENESS_PANELS = (
    ("Staleness (iterations)", (("train/staleness/mean", "mean of tokens"), ("train/staleness/max", "largest"))),
    (
        "Importance correction (share of tokens)",
        (("train/staleness/ess", "effective sample size"), ("train/importance_dropped", "dropped")),
    ),
)
"""Panels of a run that trained on tokens of older weights."""


def plot_run(rows: Mapping[int, Mapping[str, float]], path: Path, title: str) -> None:
    """Draw a run's curves.

    Args:
        rows: {step: {metric: value}}, as in metrics.csv.
        path: the PNG to write.
        title: the title of the figure.
    """
    logged: set[str] = set()
    for row in rows.values():
        logged.update(row)
    panels = [LOSS_PANEL, *PANELS[1:]]
    if "rollout/reward" in logged:
        panels[0] = PANELS[0]
    elif "rollout/entropy" in logged:
        panels[0] = TEACHER_PANEL
    if "train/staleness/mean" in logged:
        panels += STALENESS_PANELS
    height = len(panels) // 2
    figure = import_matplotlib().figure.Figure(figsize=(10, 3.25 * height), layout="constrained")
    for axis, (label, lines) in zip(figure.subplots(height, 2).flat, panels, strict=True):
        if label == "Accuracy":
            draw_noise(axis, rows)
        for metric, name in lines:
            points = []
            for step, row in sorted(rows.items()):
                if metric in row:
                    points.append((step, row[metric]))
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.5, label=name)
        axis.set_title(label)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(lines) > 1 and axis.lines:
            axis.legend()
        if label in ("Reward", "Accuracy"):
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def draw_noise(axis: Any, rows: Mapping[int, Mapping[str, float]]) -> None:
    """Draw a band of two standard errors around each validation, and the constant guess as a line."""
    validated = []
    for step, row in sorted(rows.items()):
        if "val/accuracy" in row:
            validated.append((step, Validated.of_row(row)))
    if not validated:
        return
    steps = [step for step, _ in validated]
    lower = []
    for _, each in validated:
        lower.append(each.accuracy - CERTAIN * each.error)
    upper = []
    for _, each in validated:
        upper.append(each.accuracy + CERTAIN * each.error)
    axis.fill_between(steps, lower, upper, color="C1", alpha=0.2, linewidth=0)
    guess = validated[-1][1].guess
    if guess:
        axis.axhline(guess, color="gray", linestyle="--", linewidth=1, label="a constant guess")


class RunFolder(ChecksArguments, Callback):
    """The results of a run in `trainer.default_root_dir`, in addition to checkpoints and logs.

    They are `completions.jsonl` (sampled groups), `validation.jsonl` (correct completions of each question), `images/`
    (thumbnails), `rollouts/` (numbers of each token, for `explain`), `curves.png`, and `summary.json`, which a run also
    writes when it stops early.

    Args:
        save_prompts: prompts per iteration whose groups are saved to completions.jsonl; of several processes, prompts
            of the first.
        show_every: iterations between tables of sample completions in the terminal; 0 = never.
        trace_every: iterations between rollouts whose tokens are saved for `lit-rlvr explain`, for `save_prompts`
            prompts each; the last rollout and the newest with a gradient are saved too; 0 = never.
    """

    config_key = "run"

    def __init__(self, save_prompts: int = 2, show_every: int = 10, trace_every: int = 10) -> None:
        check_within("[0, inf)", "run", save_prompts=save_prompts, show_every=show_every, trace_every=trace_every)
        self.save_prompts = save_prompts
        self.show_every = show_every
        self.trace_every = trace_every
        self.rows: list[dict[str, Any]] = []  # of the last iteration, as in completions.jsonl
        self._trace: Trace | None = None  # of the iteration in progress
        # By step: the last trace, and the newest with a gradient.
        self._unsaved_traces: dict[int, tuple[Trace, Rollout]] = {}
        self.accuracy_before: float | None = None
        self.before_warm_start: float | None = None  # the accuracy
        self._last: tuple[int, float | None] = (-1, None)  # the last validation: step, accuracy
        self.train_seconds = 0.0
        self.resumed_from_step = 0
        self.has_started = False
        self.summary: dict[str, Any] = {}  # what this process has written to summary.json
        self._has_ended = False  # whether the last iteration was that of trainer.max_steps or trainer.max_epochs
        self._iteration_start = 0.0
        self._fit_start = time.perf_counter()
        self._startup_seconds = 0.0
        self._seconds: dict[str, list[float]] = {}
        self._validation_start = 0.0
        self.validation_seconds: list[float] = []  # without the start of the engine

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        rollout_of(trainer).pin_groups(self.save_prompts)

    def note_warm_start(self, accuracy_before: float | None) -> None:
        """Take note of the accuracy before the warm start, which the run measures before it loads its weights."""
        self.before_warm_start = accuracy_before

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit_start = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_started = True
        self.resumed_from_step = trainer.global_step
        self._startup_seconds = time.perf_counter() - self._fit_start
        if trainer.is_global_zero:
            for name in ("completions.jsonl", VALIDATION):
                _drop_after(run_root(trainer) / name, trainer.global_step)
            drop_traces_after(run_root(trainer), trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._iteration_start = time.perf_counter()
        is_traced = self.trace_every and self.save_prompts and trainer.is_global_zero
        self._trace = Trace(self.save_prompts) if is_traced else None
        pl_module.trace_next(self._trace)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train_seconds += time.perf_counter() - self._iteration_start
        for name in ("sync", "generate", "score", "train"):
            self._seconds.setdefault(name, []).append(float(trainer.callback_metrics[f"time/{name}"]))
        self._seconds.setdefault("step", []).append(time.perf_counter() - self._iteration_start)
        if trainer.is_global_zero:
            root = run_root(trainer)
            rows = self.rows = sample_rows(batch.rollout, trainer.global_step, self.save_prompts, root)
            with (root / "completions.jsonl").open("a") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            if self._trace is not None:
                self._keep_trace(trainer, pl_module, batch.rollout, self._trace)
            if self.show_every and (pl_module.iteration == 1 or pl_module.iteration % self.show_every == 0):
                show_rows(rows[:8], trainer.global_step)
            write_metrics(trainer)
        last_step = 0 < trainer.max_steps <= trainer.global_step
        last_epoch = trainer.max_epochs == trainer.current_epoch + 1 and batch_idx + 1 == trainer.num_training_batches
        self._has_ended = last_step or last_epoch
        trainer.should_stop |= self._has_ended  # Lightning then validates before it ends the run

    def _keep_trace(self, trainer: Trainer, module: Any, rollout: Rollout, trace: Trace) -> None:
        older = {} if trace.live else self._unsaved_traces
        self._unsaved_traces = {step: kept for step, kept in older.items() if kept[0].live}
        self._unsaved_traces[trainer.global_step] = (trace, rollout)
        if (module.iteration - 1) % self.trace_every == 0:
            self._save_trace(trainer, module, trainer.global_step)

    def _save_trace(self, trainer: Trainer, module: Any, step: int) -> None:
        (trace, rollout), root = self._unsaved_traces.pop(step), run_root(trainer)
        groups = trace.records(rollout, module.tokenizer)
        for p, group in zip(trace.watched, groups, strict=True):
            group.update(_images_of_prompt(rollout.prompts[p], root))
            for record, completion in zip(group["completions"], rollout.completions[p], strict=True):
                record.update(_added_images(completion, root))
        write_trace(root, step, type(module).__name__, groups)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_start = time.perf_counter() - rollout_of(trainer).synced_engine.start_seconds

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        started = self._validation_start + rollout_of(trainer).synced_engine.start_seconds
        self.validation_seconds.append(time.perf_counter() - started)
        results = pl_module.validation.results
        if not trainer.sanity_checking:
            self._last = (trainer.global_step, results.get("val/accuracy"))
        elif trainer.global_step == 0:
            self.accuracy_before = results.get("val/accuracy")
            if self.before_warm_start is not None and "val/accuracy" in results:
                results = results | {"val/accuracy_before_warm_start": self.before_warm_start}
            for logger in trainer.loggers:  # Lightning does not log the check before training
                logger.log_metrics(results, step=0)
        if trainer.global_step == 0 or not trainer.sanity_checking:
            self._save_questions(trainer, pl_module)

    def _save_questions(self, trainer: Trainer, module: Any) -> None:
        """Append a line for each validation set to validation.jsonl, in place of those of this step or later."""
        if trainer.is_global_zero and trainer.state.fn == "fit":
            path = run_root(trainer) / VALIDATION
            _drop_after(path, trainer.global_step - 1)
            with path.open("a") as file:
                for name, questions in module.validation.questions.items():
                    line = {"step": trainer.global_step, "set": name, "questions": questions}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        budgets = [callback for callback in callbacks_of(trainer) if isinstance(callback, Budget)]
        limits = [self._has_ended, rollout_of(trainer).ends_run, *(budget.ends_run for budget in budgets)]
        self._finish(trainer, pl_module, why_stopped(trainer, any(limits)))
        pl_module.skipped.check_end(trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete a run that was stopped in its last validation: Lightning trains nothing and comes here directly."""
        if not self.has_started and not is_complete(run_root(trainer)):
            self.on_train_start(trainer, pl_module)
            validate_now(trainer)
            self._finish(trainer, pl_module, None)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, RunStopped | KeyboardInterrupt) and pl_module.policy is not None:
            is_local = isinstance(exception, KeyboardInterrupt)
            self._finish(trainer, pl_module, str(exception) or type(exception).__name__, is_local)

    def _finish(self, trainer: Trainer, module: Any, stopped: str | None, is_local: bool = False) -> None:
        """Write the summary.

        With `is_local`, run no collectives, because the state of the other processes is unknown.

        Args:
            trainer: the trainer of the run.
            module: the algorithm.
            stopped: why the run ended early; None = it did not.
            is_local: whether this process ends alone.
        """
        if is_local and module.device_mesh is not None:
            digest = None
        else:
            digest = weights_sha256(module.policy.model)
        if not trainer.is_global_zero:
            return
        rows = metric_rows(trainer)
        validated, accuracy_after = self._last
        history = RunHistory.of_folder(run_root(trainer))
        best = best_validation(rows)
        summary = self.summary = {
            "accuracy_before_warm_start": self.before_warm_start,
            "accuracy_before": self.accuracy_before,
            "accuracy_after": accuracy_after,
            "accuracy_after_step": None if accuracy_after is None else validated,
            **_noise(rows.get(validated, {})),
            "better_validation": None if best is None else {"step": best[0], "accuracy": best[1]},
            "steps": trainer.global_step,
            "iterations": module.iteration,
            "resumed_from_step": self.resumed_from_step,
            "train_seconds": round(self.train_seconds, 3),
            "startup_seconds": round(self._startup_seconds, 3),
            "engine_start_seconds": round(rollout_of(trainer).synced_engine.start_seconds, 3),
            "validation_seconds": round(sum(self.validation_seconds), 3),
            "seconds_per_step": {name: round(median(values), 4) for name, values in self._seconds.items()},
            "peak_memory_mb": round(peak_memory_mb()),
            "engine": rollout_of(trainer).engine.name,
            "algorithm": type(module).__name__,
            "model": module.model,
            **rollout_of(trainer).teacher_versions,
            "data": type(module.data).__name__,
            "stopped": stopped,
            "collapse": " ".join(map(str, fallen(rows, history))) or None,
            "learnt": str(progress(rows, history, len(module.data.stream)) or "") or None,
            "weights_sha256": digest,
        }
        root = run_root(trainer)
        write_atomically(root / "summary.json", json.dumps(summary, indent=2) + "\n")
        for step in list(self._unsaved_traces):
            self._save_trace(trainer, module, step)
        if rows:
            plot_run(rows, root / "curves.png", f"{summary['algorithm']} on {summary['data']}, {module.model}")
        log.info("%s", self._accuracies(trainer, module.data, rows))

    def _accuracies(self, trainer: Trainer, data: Any, rows: Mapping[int, Mapping[str, float]]) -> str:
        """Return the result of validation as text, or why there was none."""
        step, after = self._last
        if not any(dataset.prompts.get("validation") for dataset in data.validated):
            return "No accuracies: there is no validation set; set data.validation or data.validation_split"
        first = "not measured"
        last = "not measured"
        steps = trainer.global_step
        if self.accuracy_before is not None:
            first = f"{self.accuracy_before:.3f}"
        if after is not None:
            last = f"{after:.3f}"
            steps = step
        start = f"{first} before"
        if self.before_warm_start is not None:
            start = f"{self.before_warm_start:.3f} before, {first} after the warm start"
        if after is not None and "val/accuracy" in rows.get(step, {}):
            last = Validated.of_row(rows[step]).described
        better = ""
        best = best_validation(rows)
        if best is not None:
            better = f"; that of step {best[0]} was better: {best[1]:.3f}"
        return (
            f"Validation accuracy {start}, {last} after {steps} steps ({self.train_seconds:.0f} s of training){better}"
            f". Results: {shown(run_root(trainer))}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "accuracy_before": self.accuracy_before,
            "before_warm_start": self.before_warm_start,
            "train_seconds": self.train_seconds,
            "seconds": self._seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accuracy_before = state_dict["accuracy_before"]
        self.before_warm_start = state_dict.get("before_warm_start")  # an older checkpoint has none
        self.train_seconds = state_dict["train_seconds"]
        self._seconds = state_dict["seconds"]


def _noise(row: Mapping[str, float]) -> dict[str, float | None]:
    """Return two standard errors of a validation's accuracy, and the accuracy of a constant guess, for the summary."""
    if "val/accuracy" not in row:
        return {"accuracy_after_noise": None, "constant_guess": None}
    found = Validated.of_row(row)
    noise = None if isnan(found.error) else CERTAIN * found.error
    return {"accuracy_after_noise": noise, "constant_guess": found.guess or None}


def write_metrics(trainer: Trainer) -> None:
    """Write this iteration's metrics to metrics.csv now.

    Lightning logs them only after the checkpoint, and a run killed in between would resume without them.
    """
    values = {}
    for name, value in trainer._logger_connector.metrics["log"].items():
        values[name] = float(value)
    step = int(values.pop("step"))
    metrics = metrics_file(trainer)
    if metrics is not None:
        metrics.log_metrics(values | {"epoch": float(trainer.current_epoch)}, step)
        metrics.save()


def sample_rows(rollout: Rollout, step: int, prompts: int, run_folder: Path) -> list[dict[str, Any]]:
    """Return the groups of a rollout's first prompts as flat records, and save their images as thumbnails.

    Args:
        rollout: the scored rollout.
        step: optimizer step at the end of the iteration.
        prompts: how many prompts.
        run_folder: the run's folder, which receives the thumbnails.
    """
    rows = []
    for p, prompt in enumerate(rollout.prompts[:prompts]):
        images = _images_of_prompt(prompt, run_folder)
        for g, completion in enumerate(rollout.completions[p]):
            rows.append(
                {
                    "step": step,
                    "id": prompt.sample.id,
                    "sample": g,
                    "prompt": prompt.sample.prompt,
                    "answer": prompt.sample.answer,
                    "completion": completion.text,
                    **({"turns": [turn.recorded() for turn in completion.turns]} if completion.turns else {}),
                    "finish_reason": completion.finish_reason,
                    "tokens": completion.length,
                    **rollout.record(p, g, digits=6),
                    **images,
                    **_added_images(completion, run_folder),
                }
            )
    return rows


def show_rows(rows: list[dict[str, Any]], step: int) -> None:
    """Print a table of sample completions in the terminal."""
    cells = []
    for row in rows:
        if isinstance(row["prompt"], str):
            prompt = row["prompt"]
        else:
            prompt = str(row["prompt"][-1]["content"])
        if row["advantage"] is None:
            advantage = ""
        else:
            advantage = f"{row['advantage']:+.2f}"
        reward = "" if row["reward"] is None else f"{row['reward']:.2f}"
        cells.append((_short(prompt), _short(row["completion"]), reward, advantage))
    Terminal(stderr=True, width=None if os.isatty(2) else 120).print(
        table_of(("prompt", "completion", "reward", "advantage"), cells, 2, title=f"Samples of step {step}")
    )


def _short(text: str) -> str:
    flat = one_line(text)
    if len(flat) <= 160:
        return flat
    return flat[:157] + "..."


def _drop_after(path: Path, step: int) -> None:
    """Drop the records of a JSONL file after `step`, which a resumed run writes again.

    Raises:
        UserError: a line is no record of a run.
    """
    if not path.is_file():
        return
    *lines, _ = path.read_text(errors="replace").split("\n")  # the last line is empty, or torn by a kill
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{shown(path)}, line {number}: not a record of a run; move the file away, or mend it"
            ) from error
    write_atomically(path, "".join(kept))


def peak_memory_mb() -> float:
    """Return the peak memory of the GPU, or else the peak resident memory of this process, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
