"""Reads the files of a run folder without torch and Lightning, for the commands that show runs."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from lit_rlvr.common.files import Fields, has_fields
from lit_rlvr.common.paths import expanded, shown
from lit_rlvr.errors import UserError

LIVE = "live.json"
STATE: Fields = {
    "stage": str, "part": str, "since": (int, float), "done": int, "total": int, "tokens_per_second": (int, float),
    "waiting": dict, "step": int, "steps": (int, type(None)), "seconds_left": (int, float, type(None)),
    "memory_mb": (int, float), "engine": str, "at": (int, float),
}  # fmt: skip
"""Fields that every `live.json` has."""
VALIDATION = "validation.jsonl"
"""File of a run with a line for each validation and set: the step, the set, and question -> [correct, counted]."""
THUMBNAILS = f"images/{'[0-9a-f]' * 16}.png"
"""Pattern of a run's thumbnails, without other pictures in the folder."""
COLLAPSE, EARLY_STOP = "collapse: ", "early stop: "
"""Beginnings of `stopped` in the summary of a run that a callback ended."""


def is_run(name: str) -> bool:
    """Return whether a model is given as a run folder."""
    return (expanded(name) / "config.yaml").is_file()


def is_complete(run_folder: Path) -> bool:
    """Return whether the run in a folder reached its end, or a callback ended it, and no signal stopped it before."""
    summary = run_folder / "summary.json"
    if not summary.is_file():
        return False
    stopped = json.loads(summary.read_text())["stopped"]
    return stopped is None or stopped.startswith((COLLAPSE, EARLY_STOP))


def checkpoint_folder(run_folder: str | Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return Path(run_folder) / "checkpoints"


def list_checkpoints(run_folder: str | Path) -> list[Path]:
    """Return a run's checkpoints, oldest first; a folder that this user may not read is an error, not an empty one."""
    folder = checkpoint_folder(run_folder)  # `Path.glob` finds nothing in a folder that may not be read
    paths = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(r"step-\d+\.ckpt", path.name):
            paths.append(path)
    return sorted(paths, key=lambda path: int(path.stem.removeprefix("step-")))


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Read a metrics.csv; return step -> metric -> value, without empty cells.

    Raises:
        UserError: a line is no row of a run.
    """
    rows = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                step = int(row.pop("step"))
                rows[step] = {name: float(value) for name, value in row.items() if value != ""}
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise UserError(
                f"{shown(path)}, line {reader.line_num}: not a row of a run; mend the file, or move it away"
            ) from error
    return rows


def thumbnail_path(run_folder: str | Path, key: str) -> Path:
    """Return the file of an image's thumbnail in a run."""
    return Path(run_folder) / "images" / f"{key}.png"


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; None if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_live(run_folder: Path) -> dict[str, Any] | None:
    """Read a run folder's `live.json`; return None if it is missing or broken."""
    state = read_json(run_folder / LIVE)
    if has_fields(state, STATE):
        return state
    return None


def trace_folder(run_folder: str | Path) -> Path:
    """Return the folder of a run's traced rollouts."""
    return Path(run_folder) / "rollouts"


def list_traces(run_folder: str | Path) -> dict[int, Path]:
    """Return the files that `write_trace` wrote, by step."""
    files = {}
    for path in sorted(trace_folder(run_folder).glob("step-*.json")):
        files[path.stem.removeprefix("step-")] = path
    traces = {}
    for step, path in files.items():
        if step.isdigit():
            traces[int(step)] = path
    return traces


def read_trace(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return (algorithm, groups) from a file that `write_trace` wrote.

    Raises:
        UserError: it cannot be read, or is not such a file.
    """
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not has_fields(saved, {"algorithm": str, "groups": list}) or not saved["groups"]:
        raise UserError(f"{path} is not a rollout that `lit-rlvr fit` saved")
    return saved["algorithm"], saved["groups"]
