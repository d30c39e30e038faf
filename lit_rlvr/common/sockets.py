"""Listening sockets, whose errors are one line."""

from __future__ import annotations

import socket

from lit_rlvr.errors import UserError


def open_socket(host: str, port: int, failure: str = "") -> socket.socket:
    """Open a listening socket at an address.

    Args:
        host, port: the address; port 0 = any free one.
        failure: the beginning of the message; "" = of a command with the options --host and --port.

    Raises:
        UserError: it is taken, not this machine's, or no port.
    """
    is_dual, family = (True, socket.AF_INET6) if ":" in host else (False, socket.AF_INET)
    dual_stack = is_dual and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=1024, dualstack_ipv6=dual_stack)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while attempting")[0].rstrip(".")
        failure = failure or f"--host {host} --port {port}: cannot listen there"
        raise UserError(f"{failure}: {reason}; choose another port, or 0 for any free one") from error
