"""The addresses at which this machine and servers reach each other."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from lit_rlvr.errors import UserError


def route_to(host: str, port: int) -> tuple[str, str]:
    """Return the addresses of this machine and of another one, as this machine's packets to it carry them."""
    family, address = _look_up(host, port)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0]), str(probe.getpeername()[0])


def _look_up(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Return the family and address of a host: IPv4 if it has both."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, _, _, _, address = min(infos, key=lambda info: info[0] != socket.AF_INET)
    return family, address


def is_this_machine(url: str) -> bool:
    """Return whether a server's URL names this machine: a loopback address, or one of its own.

    A port that is forwarded to another machine looks like that too.
    """
    parts = urlsplit(url)
    try:
        local, remote = route_to(parts.hostname or "", parts.port or 80)
    except OSError:
        return False
    return remote == local or ip_address(remote).is_loopback


def own_address(url: str, chosen: str | None = None) -> str:
    """Return the address at which a server can reach this machine.

    Args:
        url: the server's.
        chosen: the address that the user chose; None = the one from which this machine reaches the server.

    Raises:
        UserError: an address cannot be resolved, or the server is on another machine and would look for this one on
            itself.
    """
    parts = urlsplit(url)
    try:
        local, remote = route_to(parts.hostname or "", parts.port or 80)
        address = ip_address(_look_up(chosen, 0)[1][0] if chosen else local)
    except OSError as error:
        raise UserError(
            f"NCCLTransfer.address: {chosen or 'none'}, for {url}: {error.strerror or error}; give the address at "
            "which the servers reach this machine"
        ) from error
    if address.is_loopback and remote != local and not ip_address(remote).is_loopback:
        raise UserError(
            f"NCCLTransfer.address: {chosen} is {address}, where {url} would find itself; leave it out, or use {local}"
        )
    return chosen or local


def free_port() -> int:
    """Return a free TCP port on this machine."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
