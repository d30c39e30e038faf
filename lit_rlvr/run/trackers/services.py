"""The trackers: W&B, MLflow and TensorBoard by Lightning's loggers, and trackio."""

from __future__ import annotations

import os
import uuid
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from lit_rlvr.errors import UserError
from lit_rlvr.run.trackers.base import Samples, TrackedRun, Tracker, numbers


class LightningTracker(Tracker):
    """A tracker that one of Lightning's loggers writes to."""

    @abstractmethod
    def open(self, run: TrackedRun) -> Logger:
        """Return the logger that creates or continues the run."""

    @abstractmethod
    def log_samples(self, step: int, samples: Samples) -> None:
        """Send the samples of an iteration, which ended with this optimizer step."""

    def start(self, run: TrackedRun) -> tuple[str, int]:
        self.logger: Any = self.open(run)
        if run.id is None:
            self.logger.log_hyperparams(dict(run.config))
        return str(self.logger.version), run.last_step

    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        self.logger.log_metrics(dict(metrics), step)
        if samples is not None:
            self.log_samples(step, samples)

    def end(self, summary: Mapping[str, Any], failed: bool) -> None:
        if summary:
            self.logger.log_metrics(numbers(summary), int(summary["steps"]))
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

    key, module = "wandb", "wandb"

    def __init__(
        self,
        project: str = "lit-rlvr",
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.project, self.entity, self.mode, self.options = project, entity, mode, options or {}

    def open(self, run: TrackedRun) -> Logger:
        import wandb

        mode = self.mode or os.environ.get("WANDB_MODE")
        mode = mode or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        logger = WandbLogger(
            project=self.project, entity=self.entity, name=run.name, version=run.id, save_dir=str(run.folder),
            mode=mode, **self.options,
        )  # fmt: skip
        _ = logger.experiment  # it has the id now
        return logger

    def log_samples(self, step: int, samples: Samples) -> None:
        from wandb import Table

        table = Table(columns=list(samples.columns), data=samples.rows, allow_mixed_types=True)
        self.logger.log_metrics({"samples": table}, step)
        if samples.pictures:
            captions = list(samples.pictures.values())
            self.logger.log_image("pictures", [*map(str, samples.pictures)], step, caption=captions)

    def end(self, summary: Mapping[str, Any], failed: bool) -> None:
        super().end(summary, failed)
        self.logger.experiment.finish(exit_code=int(failed))


class MLflow(LightningTracker):
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
        self.experiment, self.tracking_uri, self.tags = experiment, tracking_uri, tags or {}

    def open(self, run: TrackedRun) -> Logger:
        # MLflow's own defaults would hold up training for many minutes whenever its server cannot be reached.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        given, folder = os.environ.get("MLFLOW_TRACKING_URI"), run.folder.resolve()
        uri = self.tracking_uri or given
        logger = MLFlowLogger(
            experiment_name=self.experiment, run_name=run.name, tags=dict(self.tags), run_id=run.id,
            tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}",
            artifact_location=None if uri else (folder / "mlflow-files").as_uri(),
        )  # fmt: skip
        logger.experiment.log_text(str(logger.run_id), run.config_file, "config.yaml")
        if given is None:  # MLflow makes an address the default of the whole process, and of the next run in it
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        return logger

    def log_samples(self, step: int, samples: Samples) -> None:
        client, run = self.logger.experiment, self.logger.run_id
        client.log_dict(run, {"columns": list(samples.columns), "data": samples.rows}, f"samples/step-{step:06d}.json")
        for number, path in enumerate(samples.pictures):
            client.log_image(run, pixels(path), key=f"picture_{number}", step=step)


class TensorBoard(Tracker):
    """TensorBoard, which every run writes unless `trainer.logger` is false: the samples, with pictures, and the
    settings. Lightning's logger itself writes the metrics."""

    key = "tensorboard"

    def start(self, run: TrackedRun) -> tuple[str, int]:
        boards = [logger for logger in run.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards:
            raise UserError("trackers: tensorboard is switched off by trainer.logger: false")
        self.writer = boards[0].experiment
        self.writer.add_text("config", "\n".join(f"    {line}" for line in run.config_file.splitlines()), 0)
        return "", -1  # a resumed run's event file says itself which steps it replaces

    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        if samples is not None:
            rows = [samples.columns, ["---"] * len(samples.columns), *samples.rows]
            cells = [[str(value).replace("|", "\\|").replace("\n", "<br>") for value in row] for row in rows]
            self.writer.add_text("samples", "\n".join(f"|{'|'.join(row)}|" for row in cells), step)
            for number, path in enumerate(samples.pictures):
                self.writer.add_image(f"samples/picture_{number}", pixels(path), step, dataformats="HWC")

    def end(self, summary: Mapping[str, Any], failed: bool) -> None:
        self.writer.flush()


class Trackio(Tracker):
    """trackio, in its folder on this machine (the environment variable TRACKIO_DIR), on a server or in a Space.

    Args:
        project: its project.
        space_id: the Hugging Face Space to send the run to.
        server_url: the trackio server to send the run to.
        group: the group of runs that this one belongs to.
    """

    key, module = "trackio", "trackio"

    def __init__(
        self,
        project: str = "lit-rlvr",
        space_id: str | None = None,
        server_url: str | None = None,
        group: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.project, self.options = project, {"space_id": space_id, "server_url": server_url, "group": group}

    def start(self, run: TrackedRun) -> tuple[str, int]:
        import trackio

        # trackio finds a run by its name alone, and run folders of the same name are different runs.
        name = run.id or f"{run.name}-{uuid.uuid4().hex[:6]}"
        resume: Literal["allow", "never"] = "allow" if run.id else "never"
        self.run: Any = trackio.init(
            self.project, name, config=dict(run.config), resume=resume, embed=False, **self.options
        )
        return name, self.run._next_step - 1  # trackio writes in the background: the steps that it has written

    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        import trackio

        row: dict[str, Any] = dict(metrics)
        if samples is not None:
            row["samples"] = trackio.Table(columns=list(samples.columns), data=samples.rows)
            for number, (path, name) in enumerate(samples.pictures.items()):
                row[f"picture_{number}"] = trackio.Image(str(path), caption=name)
        self.run.log(row, step=step)

    def end(self, summary: Mapping[str, Any], failed: bool) -> None:
        if summary:
            self.run.log(numbers(summary), step=int(summary["steps"]))
        self.run.finish()


def pixels(path: Any) -> np.ndarray:
    """Return a picture as bytes of shape (height, width, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
