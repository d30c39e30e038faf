"""Weights & Biases, online and offline."""

from __future__ import annotations

import logging
import netrc
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lit_rlvr.errors import UserError, first_line
from lit_rlvr.run.trackers.base import Samples, TrackedRun, Tracker, numbers

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


def last_offline_step(paths: Sequence[Path]) -> int | None:
    """Return the last step whose metrics are in any of the files; None if there is none."""
    records = (record for path in paths for record in read_records(path))
    steps = [record.history.step.num for record in records if record.WhichOneof("record_type") == "history"]
    return max(steps, default=None)


SERVER_PATIENCE = 3.0
"""Seconds after which the tracker reports that it waits for W&B's server."""
LONGEST_WAIT = 30.0
"""Seconds to wait for W&B's server, unless `options` or WANDB_INIT_TIMEOUT say otherwise."""

_log = logging.getLogger("lit_rlvr")


class Wandb(Tracker):
    """Weights & Biases: W&B's own step is the optimizer step, so that a step that it has is never logged twice.

    Args:
        project: its project.
        entity: the user or team that owns the project; by default the user who is logged in.
        mode: `online`, `offline` (`wandb sync` uploads the run later), or by default `online` if there is an API key
            and `offline` if there is none or if the server does not answer; the environment variable WANDB_MODE has
            precedence over the default.
        options: further arguments of `wandb.init`, such as `group` or `tags`; `settings: {init_timeout: 90}` waits
            longer for the server.
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
        requested: Any = self.mode or os.environ.get("WANDB_MODE")
        mode = requested or ("online" if has_key() else "offline")
        # Ask W&B which steps it has: a killed process loses those that it had not written yet.
        written = last_offline_step(sorted(run.folder.glob(f"wandb/offline-run-*-{run.id}/*.wandb")))
        why = "" if requested else ", because there is no API key (`wandb login`)"
        if mode == "online":
            try:
                self._run = self._start_online(run)
            except TimeoutError as error:
                if requested:
                    raise UserError(
                        f"trackers: wandb: {error}; mend the connection, or set its mode: offline and upload the run "
                        "later"
                    ) from error
                mode, why = "offline", f", because {error}"
        if mode != "online":
            self._run = self._init(run, mode)
        if mode == "offline":
            upload = f"upload the run with `wandb sync {run.folder}/wandb/offline-run-*`"
            _log.warning("trackers: wandb is offline%s; %s", why, upload)
        return self._run.id, self._run.step - 1 if mode == "online" else run.last_step if written is None else written

    def _start_online(self, run: TrackedRun) -> Any:
        """Start the run on the server; report a long wait.

        Raises:
            TimeoutError: the server does not answer.
        """
        import wandb

        url, settings = base_url(), self._settings()
        waiting = "trackers: waiting for wandb at %s, for about %g s; its mode: offline does not wait"
        says = threading.Timer(SERVER_PATIENCE, _log.info, [waiting, url, settings.init_timeout])
        says.daemon = True
        says.start()
        began = time.monotonic()
        try:
            return self._init(run, "online")
        except (wandb.errors.CommError, TimeoutError) as error:
            if time.monotonic() - began < settings.init_timeout:
                raise
            raise TimeoutError(f"{url} does not answer ({first_line(error)})") from error
        finally:
            says.cancel()

    def _init(self, run: TrackedRun, mode: Any) -> Any:
        import wandb

        return wandb.init(
            project=self.project, entity=self.entity, name=run.name, id=run.id, mode=mode,
            resume="allow" if mode == "online" and run.id else None, dir=str(run.folder), config=dict(run.config),
            allow_val_change=True, **{**self.options, "settings": self._settings()},
        )  # fmt: skip

    def _settings(self) -> Any:
        """Return W&B's settings of this run, with a shorter wait for the server than W&B's default."""
        import wandb

        given = self.options.get("settings") or {}
        if not isinstance(given, Mapping):
            return given
        wait = float(os.environ.get("WANDB_INIT_TIMEOUT", LONGEST_WAIT))
        return wandb.Settings(**{"init_timeout": wait, **given})

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


def base_url() -> str:
    """Return the address of W&B's server."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)


def has_key() -> bool:
    """Return whether there is an API key, without a prompt in the terminal or a request over the network."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = str(urlsplit(base_url()).hostname)
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return known.authenticators(host) is not None
