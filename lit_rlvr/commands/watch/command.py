"""The command line of `watch`: it starts the server, or shows the runs as a table in the terminal."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lit_rlvr.commands.report.charts import Curve, curve, number_text
from lit_rlvr.commands.watch.follow import FollowedFolders
from lit_rlvr.common.packages import require
from lit_rlvr.common.terminal import Terminal, show_result, wants_json
from lit_rlvr.configs import Parser
from lit_rlvr.errors import UserError
from lit_rlvr.run.findings import findings

_log = logging.getLogger("lit_rlvr")


BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 12
"""Width of a curve in characters."""
CURVE_COLUMNS = (
    ("reward", "rollout/reward"), ("accuracy", "rollout/accuracy"), ("held out", "val/accuracy"),
    ("entropy", "train/entropy"), ("length", "rollout/length"),
)  # fmt: skip
"""Heading -> metric."""


def run(command: str, arguments: list[str]) -> None:
    """Run the command line of `watch`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=watch.__doc__)
    parser.add_argument(
        "runs", type=str, nargs="+", help="folders of runs, of studies, or with runs in them; later ones are found too"
    )
    parser.add_argument("--port", type=int, default=7860, help="port; 0 = any free one")
    parser.add_argument(
        "--host", type=str, default="127.0.0.1",
        help="address to listen at; any but this machine's own asks browsers for a token, which is printed",
    )  # fmt: skip
    parser.add_argument("--terminal", action="store_true", help="show a table in the terminal instead")
    config = parser.parse_args(arguments)
    folders = [Path(folder) for folder in config.runs]
    if wants_json():
        show_result(states(FollowedFolders(folders)), lambda: None)
    elif config.terminal:
        show_runs(FollowedFolders(folders), threading.Event())
    else:
        watch(folders, config.host, config.port)


def watch(folders: list[Path], host: str = "127.0.0.1", port: int = 7860) -> None:
    """Follow runs in a browser, while they train and afterwards.

    Args:
        folders: folders of runs, of studies, or with runs in them.
        host: address to listen at.
        port: port; 0 = any free one.

    Raises:
        UserError: a folder holds no run, the port is taken, or starlette is not installed.
    """
    if not 0 <= port < 65536:
        raise UserError(f"--port: {port} is not a port; use 0 to 65535")
    token = None if host in ("127.0.0.1", "localhost", "::1") else secrets.token_urlsafe(16)
    require("starlette", "watch", "starlette", "uvicorn")
    import uvicorn

    from lit_rlvr.commands.watch.application import application

    app = application(FollowedFolders(folders), token)
    listener = open_socket(host, port)
    address = f"[{host}]" if ":" in host else host
    shown = f"http://{address}:{listener.getsockname()[1]}/" + (f"?token={token}" if token else "")
    print(f"Watching {', '.join(map(str, folders))} at {shown} (Ctrl-C ends it; the runs go on)", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


def open_socket(host: str, port: int) -> socket.socket:
    """Open a listening socket at an address.

    Raises:
        UserError: it is taken, or not this machine's.
    """
    both, family = (True, socket.AF_INET6) if ":" in host else (False, socket.AF_INET)
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=both and socket.has_dualstack_ipv6())
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while attempting")[0]
        raise UserError(
            f"--host {host} --port {port}: cannot listen there: {reason}; choose another port, or 0 for any free one"
        ) from error


def show_runs(
    folders: FollowedFolders, stop: threading.Event, seconds: float = 1.0, console: Terminal | None = None
) -> None:
    """Show the runs until `stop` is set, and refresh after so many seconds; show them once if the console is no
    terminal."""
    console = console or Terminal()
    if not console.is_terminal:
        console.print(runs_table(folders))
        return
    with Live(runs_table(folders), console=console, screen=True, auto_refresh=False) as live:
        while not stop.wait(seconds):
            folders.try_refresh()
            live.update(runs_table(folders), refresh=True)


def states(folders: FollowedFolders) -> dict[str, dict[str, Any]]:
    """Return the status and the findings of each run, for JSON."""
    return {
        name: vars(followed.status) | {"findings": [vars(finding) for finding in findings(followed.run.metrics)]}
        for name, followed in folders.runs.items()
    }


def runs_table(folders: FollowedFolders) -> RenderableType:
    """Return a table with each run's status and curves, and the findings below it."""
    shown = Table(
        "run", *(heading for heading, _ in CURVE_COLUMNS), title=folders.title, title_justify="left", expand=True
    )
    notes: list[Text] = []
    for name, followed in folders.runs.items():
        cells = [_curve_text(curve([followed.run], [metric])) for _, metric in CURVE_COLUMNS]
        shown.add_row(Text(f"{followed.path.parent.name}/{followed.path.name}\n{followed.status.line}"), *cells)
        notes += [Text(f"{name}: {found}") for found in findings(followed.run.metrics)]
    return Group(shown, *notes)


def _curve_text(values: Curve | None) -> Text:
    if values is None:
        return Text("")
    return Text(f"{number_text(values.mean[-1])}\n{sparkline(values.mean)}")


def sparkline(values: list[float], width: int = CURVE_WIDTH) -> str:
    """Draw numbers as bars of eight heights, from the lowest to the highest; of many, show the last of every few."""
    step = -(-len(values) // width)
    kept = values[::-1][::step][::-1]
    low, high = min(kept), max(kept)
    return "".join(BARS[int((value - low) / (high - low) * 7.999) if high > low else 3] for value in kept)
