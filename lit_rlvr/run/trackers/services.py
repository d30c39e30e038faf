"""The trackers: W&B and MLflow by Lightning's loggers, and trackio."""

from __future__ import annotations

import os
import uuid
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from lit_rlvr.run.trackers.base import Samples, TrackedRun, Tracker


class LightningTracker(Tracker):
    """A tracker that one of Lightning's loggers writes to."""

    @abstractmethod
    def open(self, run: TrackedRun) -> Logger:
        """Return the logger that creates or continues the run."""

    def start(self, run: TrackedRun) -> tuple[str, int]:
        self.logger: Any = self.open(run)
        if run.id is None:
            self.logger.log_hyperparams(dict(run.config))
        return str(self.logger.version), run.last_step

    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        self.logger.log_metrics(dict(metrics), step)

    def end(self, failed: bool) -> None:
        self.logger.finalize("failed" if failed else "success")


class Wandb(LightningTracker):
    """Weights & Biases.

    Args:
        project: its project.
        entity: the user or team that owns the project; by default the user who is logged in.
        mode: `online`, `offline` (`wandb sync` uploads the run later), or by default `online` if there is an API key
            and `offline` if there is none; the environment variable WANDB_MODE has precedence over the default.
        options: further arguments of `wandb.init`, such as `group` or `tags`; `settings: {init_timeout: 30}` waits for
            the server for half a minute instead of a minute and a half.
    """

    key = "wandb"
    module = "wandb"

    def __init__(
        self,
        project: str = "lit-rlvr",
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.project = project
        self.entity = entity
        self.mode = mode
        self.options = options or {}

    def open(self, run: TrackedRun) -> Logger:
        import wandb

        chosen = self.mode or os.environ.get("WANDB_MODE")
        logger = WandbLogger(
            project=self.project,
            entity=self.entity,
            name=run.name,
            version=run.id,
            save_dir=str(run.folder),
            mode=chosen or ("online" if wandb.login(prompt=False, verify=False) else "offline"),
            **self.options,
        )
        _ = logger.experiment  # it has the id now
        return logger

    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        super().log(step, metrics, samples)
        if samples is not None:
            self.logger.log_table("samples", samples.columns, samples.rows, step=step)

    def end(self, failed: bool) -> None:
        super().end(failed)
        self.logger.experiment.finish(exit_code=int(failed))


class MLflow(LightningTracker):
    """MLflow, by default in a database in the run folder.

    Args:
        experiment: its experiment, which is created if necessary.
        tracking_uri: a server or a database; by default the environment variable MLFLOW_TRACKING_URI, or else
            `trackers/mlflow.db` in the run folder.
        tags: tags of the run.
    """

    key = "mlflow"
    module = "mlflow"
    packages = ("mlflow-skinny", "alembic", "sqlalchemy")

    def __init__(
        self,
        experiment: str = "lit-rlvr",
        tracking_uri: str | None = None,
        tags: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.experiment = experiment
        self.tracking_uri = tracking_uri
        self.tags = tags or {}

    def open(self, run: TrackedRun) -> Logger:
        # MLflow's own defaults would hold up training for many minutes whenever its server cannot be reached.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        exported_uri = os.environ.get("MLFLOW_TRACKING_URI")
        folder = run.folder.resolve()
        uri = self.tracking_uri or exported_uri
        logger = MLFlowLogger(
            experiment_name=self.experiment,
            run_name=run.name,
            tags=dict(self.tags),
            run_id=run.id,
            tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}",
            artifact_location=None if uri else (folder / "mlflow-files").as_uri(),
        )
        logger.experiment.log_dict(str(logger.run_id), dict(run.config), "config.yaml")
        if exported_uri is None:  # MLflow makes an address the default of the whole process, and of the next run in it
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        return logger


class Trackio(Tracker):
    """trackio, in its folder on this machine (the environment variable TRACKIO_DIR), on a server or in a Space.

    Args:
        project: its project.
        space_id: the Hugging Face Space to send the run to.
        server_url: the trackio server to send the run to.
        group: the group of runs that this one belongs to.
    """

    key = "trackio"
    module = "trackio"

    def __init__(
        self,
        project: str = "lit-rlvr",
        space_id: str | None = None,
        server_url: str | None = None,
        group: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.project = project
        self.options = {"space_id": space_id, "server_url": server_url, "group": group}

    def start(self, run: TrackedRun) -> tuple[str, int]:
        import trackio

        # trackio finds a run by its name alone, and run folders of the same name are different runs.
        name = run.id or f"{run.name}-{uuid.uuid4().hex[:6]}"
        self.run: Any = trackio.init(
            self.project,
            name,
            config=dict(run.config),
            resume="allow" if run.id else "never",
            embed=False,
            **self.options,
        )
        return name, self.run._next_step - 1  # trackio writes in the background: the steps that it has written

    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        import trackio

        row: dict[str, Any] = dict(metrics)
        if samples is not None:
            row["samples"] = trackio.Table(columns=samples.columns, data=samples.rows)
        self.run.log(row, step=step)

    def end(self, failed: bool) -> None:
        self.run.finish()
