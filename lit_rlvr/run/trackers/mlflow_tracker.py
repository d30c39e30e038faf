"""MLflow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from PIL import Image

from lit_rlvr.run.trackers.base import Samples, TrackedRun, Tracker, numbers

TABLE = "samples.json"
"""Artifact with the newest samples, which MLflow shows as a table; `samples/` holds those of each step."""


class MLflow(Tracker):
    """MLflow, by default in a database in the run folder.

    Args:
        experiment: its experiment, which is created if necessary.
        tracking_uri: a server or a database; by default the environment variable MLFLOW_TRACKING_URI, or else
            `trackers/mlflow.db` in the run folder.
        tags: tags of the run.
    """

    key, module = "mlflow", "mlflow"
    packages = ("mlflow-skinny", "alembic", "sqlalchemy")

    def __init__(
        self,
        experiment: str = "lit-rlvr",
        tracking_uri: str | None = None,
        tags: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.experiment, self.tags = experiment, tags or {}
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")

    @property
    def place(self) -> str:
        return f"{self.tracking_uri or ''} {self.experiment}".strip()

    def start(self, run: TrackedRun) -> tuple[str, int]:
        # MLflow's own defaults would hold up training for many minutes whenever its server cannot be reached.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        local = self.tracking_uri is None
        self._logger = MLFlowLogger(
            experiment_name=self.experiment,
            run_name=run.name,
            tracking_uri=f"sqlite:///{run.folder.resolve() / 'mlflow.db'}" if local else self.tracking_uri,
            artifact_location=(run.folder.resolve() / "mlflow-files").as_uri() if local else None,
            tags=dict(self.tags),
            run_id=run.id,
        )
        chosen = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = self._logger.experiment
        if chosen is None:  # MLflow makes an address the default of the whole process, and of the next run in it
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        self._id = str(self._logger.run_id)
        last = run.last_step
        if run.id is None:
            self._logger.log_hyperparams(dict(run.config))  # MLflow refuses to change a parameter later
            self._client.set_tag(self._id, "mlflow.loggedArtifacts", f'[{{"path": "{TABLE}", "type": "table"}}]')
        else:
            self._client.update_run(self._id, status="RUNNING")
            last = max([last, *(point.step for point in self._client.get_metric_history(self._id, "epoch"))])
        self._client.log_text(self._id, run.config_file, "config.yaml")
        return self._id, last

    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        if samples is not None:
            table = {"columns": list(samples.columns), "data": samples.rows}
            for name in (TABLE, f"samples/step-{step:06d}.json"):
                self._client.log_dict(self._id, table, name)
            for number, path in enumerate(samples.shown):
                with Image.open(path) as picture:
                    self._client.log_image(self._id, picture.convert("RGB"), key=f"picture_{number}", step=step)
        self._logger.log_metrics(metrics, step)

    def end(self, summary: Mapping[str, Any], curves: Path | None, failed: bool) -> None:
        if summary:
            self._client.log_dict(self._id, dict(summary), "summary.json")
            self._logger.log_metrics(numbers(summary), int(summary["steps"]))
        if curves is not None:
            self._client.log_artifact(self._id, str(curves))
        self._logger.finalize("failed" if failed else "success")
