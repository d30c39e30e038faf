"""trackio."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_rlvr.run.trackers.base import Samples, TrackedRun, Tracker, numbers


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
        self.project, self.space_id, self.server_url, self.group = project, space_id, server_url, group

    @property
    def place(self) -> str:
        return " ".join(filter(None, (self.project, self.space_id, self.server_url)))

    def start(self, run: TrackedRun) -> tuple[str, int]:
        import trackio

        # trackio finds a run by its name alone, and run folders of the same name are different runs.
        name = run.id or f"{run.name}-{uuid.uuid4().hex[:6]}"
        self._run = trackio.init(
            self.project, name, group=self.group, space_id=self.space_id, server_url=self.server_url,
            config=dict(run.config), resume="allow" if run.id else "never", embed=False,
        )  # fmt: skip
        return name, self._run._next_step - 1  # trackio writes in the background: the steps that it has written

    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        import trackio

        row: dict[str, Any] = dict(metrics)
        if samples is not None:
            columns, rows = samples.with_pictures(lambda paths: [trackio.Image(str(path)) for path in paths])
            row["samples"] = trackio.Table(columns=columns, data=rows)
            for number, (path, name) in enumerate(samples.shown.items()):
                row[f"picture_{number}"] = trackio.Image(str(path), caption=name)
        self._run.log(row, step=step)

    def end(self, summary: Mapping[str, Any], curves: Path | None, failed: bool) -> None:
        import trackio

        if summary:
            row: dict[str, Any] = dict(numbers(summary))
            if curves is not None:
                row["curves"] = trackio.Image(str(curves))
            self._run.log(row, step=int(summary["steps"]))
        trackio.finish()
