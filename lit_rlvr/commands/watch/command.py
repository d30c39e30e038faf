"""The command line of `watch`: it starts the server."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from lit_rlvr.commands.watch.follow import FollowedFolders
from lit_rlvr.common.packages import require
from lit_rlvr.common.sockets import open_socket
from lit_rlvr.common.terminal import show_result, wants_json
from lit_rlvr.configs import Parser
from lit_rlvr.run.advice import RunHistory
from lit_rlvr.run.health.findings import findings
from lit_rlvr.run.health.progress import progress


def run_command(command: str, arguments: list[str]) -> None:
    """Run the command line of `watch`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=watch.__doc__)
    parser.add_argument(
        "runs", type=str, nargs="+", help="folders of runs, of studies, or with runs in them; later ones are found too"
    )
    parser.add_argument("--port", type=int, default=7860, help="port; 0 = any free one")
    parser.add_argument(
        "--host",
        type=str,
        default="127.0.0.1",
        help="address to listen at; any but this machine's own asks browsers for a token, which is printed",
    )
    config = parser.parse_args(arguments)
    folders = [Path(folder) for folder in config.runs]
    if wants_json():
        show_result(states(FollowedFolders(folders)), lambda: None)
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
    if host in ("127.0.0.1", "localhost", "::1"):
        token = None
    else:
        token = secrets.token_urlsafe(16)
    require("starlette", "watch", "starlette", "uvicorn")
    import uvicorn

    from lit_rlvr.commands.watch.application import application

    listener = open_socket(host, port)
    app = application(FollowedFolders(folders), token)
    address = f"[{host}]" if ":" in host else host
    url = f"http://{address}:{listener.getsockname()[1]}/" + (f"?token={token}" if token else "")
    print(f"Watching {', '.join(map(str, folders))} at {url} (Ctrl-C ends it; the runs go on)", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


def states(folders: FollowedFolders) -> dict[str, dict[str, Any]]:
    """Return of each run the status, the findings and what it has learnt, for JSON."""
    found = {}
    for name, followed in folders.runs.items():
        metrics = followed.run.metrics
        history = RunHistory.of_config(followed.run.config)
        found[name] = {
            **vars(followed.status),
            "findings": [vars(finding) for finding in findings(metrics, history)],
            "learnt": str(progress(metrics, history) or ""),
        }
    return found
