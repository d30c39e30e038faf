"""The command line of `watch`, and the function that starts its server."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from pathlib import Path

from lit_rlvr.configs import Parser
from lit_rlvr.errors import UserError
from lit_rlvr.packages import require
from lit_rlvr.terminal import show_result, wants_json
from lit_rlvr.watch.follow import FollowedFolders
from lit_rlvr.watch.terminal import show, states

_log = logging.getLogger("lit_rlvr")


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
        show(FollowedFolders(folders), threading.Event())
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

    from lit_rlvr.watch.server import application

    app = application(FollowedFolders(folders), token)
    listener = listen(host, port)
    address = f"[{host}]" if ":" in host else host
    shown = f"http://{address}:{listener.getsockname()[1]}/" + (f"?token={token}" if token else "")
    print(f"Watching {', '.join(map(str, folders))} at {shown} (Ctrl-C ends it; the runs go on)", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket at an address.

    Raises:
        UserError: it is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(
            f"--host {host} --port {port}: cannot listen there: {error.strerror or error}; choose another port, or 0 "
            "for any free one"
        ) from error
    return listener
