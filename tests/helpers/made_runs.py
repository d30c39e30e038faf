"""Run folders written by hand, as `lit-rlvr fit` leaves them: what a report reads, without training anything."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Metrics = Mapping[int, Mapping[str, float]]


def config(seed: int = 0, algorithm: str = "GRPO", root: str = "run", **options: Any) -> dict[str, Any]:
    """A resolved config.yaml, shortened."""
    return {
        "seed_everything": seed,
        "trainer": {"max_steps": 4, "precision": "32-true", "default_root_dir": root, "logger": None},
        "model": {
            "class_path": f"lit_rlvr.algorithms.{algorithm}",
            "init_args": {"model": "tiny", "lr": 1e-3} | options,
        },
        "data": {"class_path": "datamodules.Arithmetic", "init_args": {"prompts_per_rollout": 2}},
        "rollout": {
            "group_size": 2,
            "rewards": [{"class_path": "lit_rlvr.rewards.MathAnswer", "init_args": {"weight": 1.0}}],
        },
    }


def row(step: int, name: str, sample: int, correct: bool, completion: str = "1 + 1 = 2", **more: Any) -> dict[str, Any]:
    """A line of completions.jsonl."""
    return {
        "step": step, "id": name, "sample": sample, "prompt": f"What is {name}?", "answer": "2",
        "completion": completion, "finish_reason": "stop", "tokens": 5, "reward": float(correct), "correct": correct,
        "status": "ok", "advantage": 1.0 if correct else -1.0, **more,
    }  # fmt: skip


def group(name: str = "1+1", text: str = "two", weights: Sequence[float] = (0.5, -0.25)) -> dict[str, Any]:
    """A group of `rollouts/step-*.json`, one completion per weight, each of two tokens."""
    return {
        "id": name, "prompt": f"What is {name}?", "answer": "2",
        "completions": [
            {
                "text": text, "tokens": [text, "!"], "finish_reason": "stop", "reward": float(weight > 0), "parts": {},
                "correct": weight > 0, "status": "ok", "advantage": 1.0 if weight > 0 else -1.0,
                "engine_logp": [-1.0, -2.0], "logp": [-1.0, -2.0], "ratio": [1.0, 1.5], "weight": [weight, 0.0],
            }
            for weight in weights
        ],
    }  # fmt: skip


METRICS: Metrics = {
    0: {"val/accuracy": 0.25, "val/arithmetic/accuracy": 0.25},
    2: {"rollout/reward": 0.5, "rollout/accuracy": 0.5, "train/entropy": 1.0, "time/rollout": 2.0, "time/train": 1.0},
    4: {
        "rollout/reward": 0.75,
        "rollout/accuracy": 0.75,
        "train/entropy": 0.5,
        "time/rollout": 2.0,
        "time/train": 1.5,
        "val/accuracy": 0.75,
        "val/arithmetic/accuracy": 0.75,
    },
}


def make_run(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    metrics: Metrics = METRICS,
    rows: Sequence[Mapping[str, Any]] = (),
    traces: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
    **summary: Any,
) -> Path:
    """Write a run folder.

    Args:
        settings: config.yaml. metrics: metrics.csv by step. rows: completions.jsonl. traces: step -> groups.
        summary: other values than the usual ones of summary.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings or config())))
    names = sorted({name for values in metrics.values() for name in values})
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *names], restval="")
        writer.writeheader()
        writer.writerows({"step": step, **values} for step, values in metrics.items())
    lines = [json.dumps(dict(line), ensure_ascii=False) + "\n" for line in rows]
    (folder / "completions.jsonl").write_text("".join(lines), encoding="utf-8", errors="surrogatepass")
    for step, groups in (traces or {}).items():
        path = folder / f"rollouts/step-{step:06d}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"step": step, "algorithm": "GRPO", "groups": list(groups)}))
    usual = {
        "accuracy_before": 0.25, "accuracy_after": 0.75, "steps": 4, "iterations": 2, "train_seconds": 60.0,
        "seconds_per_step": {"step": 3.25}, "peak_memory_mb": 2048, "engine": "hf", "stopped": None,
        "weights_sha256": "0123456789abcdef",
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(usual | summary))
    return folder


def make_study(folder: Path, cells: Sequence[Mapping[str, Any]], baseline: str | None = None) -> Path:
    """Write `study.json`; its runs are written apart."""
    folder.mkdir(parents=True, exist_ok=True)
    usual = {"task": "sums", "seed": 0, "status": "done", "error": None}
    study = {"name": "a study", "baseline": baseline, "cells": [usual | dict(cell) for cell in cells]}
    (folder / "study.json").write_text(json.dumps(study))
    return folder
