"""Weights & Biases."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lit_rlvr.run.trackers.base import TrackedRun, Tracker, numbers
from lit_rlvr.run.trackers.samples import Samples
from lit_rlvr.run.trackers.wandb_file import last_offline_step

_log = logging.getLogger("lit_rlvr")


class Wandb(Tracker):
    """Weights & Biases: W&B's own step is the optimizer step, so that a step that it has is never logged twice.

    Args:
        project: its project.
        entity: the user or team that owns the project; by default the user who is logged in.
        mode: `online`, `offline` (`wandb sync` uploads the run later), or by default `online` if there is an API key
            and `offline` if there is none; the environment variable WANDB_MODE has precedence over the default.
        options: further arguments of `wandb.init`, such as `group` or `tags`.
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

    @property
    def place(self) -> str:
        return f"{self.entity or ''}/{self.project}"

    def start(self, run: TrackedRun) -> tuple[str, int]:
        import wandb

        mode: Any = self.mode or os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        online = mode == "online"
        # What W&B was given is not what it has: a killed process loses what had not yet been written.
        written = last_offline_step(sorted(run.folder.glob(f"wandb/offline-run-*-{run.id}/*.wandb")))
        self._run = wandb.init(
            project=self.project, entity=self.entity, name=run.name, id=run.id, mode=mode,
            resume="allow" if online and run.id else None, dir=str(run.folder), config=dict(run.config),
            allow_val_change=True, **self.options,
        )  # fmt: skip
        if mode == "offline":
            _log.warning(
                "trackers: wandb is offline; upload the run with `wandb sync %s/wandb/offline-run-*`, or log in "
                "before a run with `wandb login`",
                run.folder,
            )
        return self._run.id, self._run.step - 1 if online else run.last_step if written is None else written

    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        import wandb

        row: dict[str, Any] = dict(metrics)
        if samples is not None:
            columns, rows = samples.with_pictures(lambda paths: wandb.Image(str(paths[0])) if paths else None)
            if samples.shown:
                row["pictures"] = [wandb.Image(str(path), caption=name) for path, name in samples.shown.items()]
            row["samples"] = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        self._run.log(row, step=step, commit=True)

    def end(self, summary: Mapping[str, Any], curves: Path | None, failed: bool) -> None:
        import wandb

        self._run.summary.update(numbers(summary))
        if curves is not None:
            self._run.summary["curves"] = wandb.Image(str(curves))
        self._run.finish(exit_code=int(failed))


def has_key() -> bool:
    """Whether there is an API key, without asking for one at the terminal or over the network."""
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = str(urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname)
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return known.authenticators(host) is not None
