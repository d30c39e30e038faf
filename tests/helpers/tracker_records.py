"""What trackers have of a run, read back from their own files with their own packages."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, float]


@dataclass
class Kept:
    """One tracker's view of one run.

    Args:
        ids: of its runs; there should be one.
        rows: (step, metrics) in the order they were logged.
        tables: step -> the samples as records.
        config: settings, nested or flat with "/".
    """

    ids: set[str] = field(default_factory=set)
    name: str = ""
    rows: list[tuple[int, Row]] = field(default_factory=list)
    tables: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


MAGIC, BLOCK, HEADER = b":W&B", 32768, 7
WHOLE, FIRST, LAST = 1, 2, 4
"""Kinds of pieces: a whole record, and the first and last piece of one; all others lie in between."""


def read_records(path: Path) -> Iterator[Any]:
    """Return the complete records of a .wandb file as W&B's protobuf `Record`; ignore the torn end of a file.

    The file is a log of LevelDB: blocks of 32 KiB with pieces of records, each after its checksum (4 bytes), length (2)
    and kind (1). A piece never crosses the end of a block.
    """
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    position, content = HEADER, b""
    while data.startswith(MAGIC) and position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        piece = data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind == 0 or len(piece) < length:
            return
        content = piece if kind in (WHOLE, FIRST) else content + piece
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            yield record


def wandb_offline(folder: Path) -> Kept:
    """All offline parts of a run, in the order in which `wandb sync` uploads them."""
    kept = Kept()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        files = path.parent / "files"
        for record in read_records(path):
            if record.WhichOneof("record_type") == "run":
                kept.ids.add(record.run.run_id)
                kept.name = record.run.display_name
                kept.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.WhichOneof("record_type") == "config":
                kept.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            elif record.WhichOneof("record_type") == "history":
                found = _nested(record.history.item)
                step = int(found["trainer/global_step"])
                if table := found.pop("samples", None):
                    content = json.loads((files / table["path"]).read_text())
                    kept.tables[step] = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
                row = {k: v for k, v in found.items() if not k.startswith(("_", "trainer/"))}
                kept.rows += [(step, row)] if row else []
    return kept


def _nested(items: Any) -> dict[str, Any]:
    """The values that W&B's records give by their path."""
    found: dict[str, Any] = {}
    for item in items:
        *above, name = item.nested_key or [item.key]
        place = found
        for key in above:
            place = place.setdefault(key, {})
        place[name] = json.loads(item.value_json)
    return found


def mlflow_store(uri: str, experiment: str = "lit-rlvr") -> Kept:
    """Return what MLflow stored of the only run of an experiment, after checks that it ended well."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    kept = Kept(ids={run.info.run_id}, name=run.info.run_name, config=dict(run.data.params))
    points: list[tuple[int, str, float]] = []
    for key in run.data.metrics:
        found = client.get_metric_history(run.info.run_id, key)
        points += [(point.step, key, point.value) for point in found]
    steps: dict[int, Row] = {}
    for step, key, value in points:
        assert key not in steps.setdefault(step, {}), f"{key} twice at step {step}"
        steps[step][key] = value
    kept.rows = sorted(steps.items())
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (root / "config.yaml").is_file() and run.info.status == "FINISHED", run.info.status
    return kept


def trackio_store(project: str = "lit-rlvr") -> Kept:
    """Return what Trackio stored of the only run of a project."""
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_run_records(project)
    kept = Kept(ids={run["id"]}, name=run["name"], config=SQLiteStorage.get_run_config(project, run["name"]))
    for row in SQLiteStorage.get_logs(project, run["name"]):
        step = int(row["step"])
        if table := row.pop("samples", None):
            kept.tables[step] = table["_value"]
        kept.rows.append((step, {k: v for k, v in row.items() if k not in ("timestamp", "step")}))
    return kept


def tensorboard_rows(folder: Path) -> list[tuple[int, Row]]:
    """Return (step, metrics) of the scalars in a folder of TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    steps: dict[int, Row] = {}
    for key in events.Tags()["scalars"]:
        for point in events.Scalars(key):
            steps.setdefault(point.step, {})[key] = point.value
    return sorted(steps.items())
