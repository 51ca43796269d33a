"""The sockets on which `controller serve` listens.

uvicorn does not open them, because it opens different addresses for one process than for several.
"""

import contextlib
import errno
import logging
import socket
from collections.abc import Mapping, Sequence
from ipaddress import IPv6Address
from typing import Any, Final, NamedTuple

from controller.domain.errors import SettingsError

logger = logging.getLogger("controller.server")

BACKLOG: Final = 2048
_TRIES: Final = 20  # attempts to find a port that is free on all addresses
_FATAL_ERRORS: Final = (errno.EADDRINUSE, errno.EACCES, errno.EPERM)
_HINTS: Final[Mapping[int, str]] = {
    errno.EADDRINUSE: "Is another controller running there? Stop it, or choose another --port.",
    errno.EADDRNOTAVAIL: "Name an address of this machine with --host.",
    errno.EAFNOSUPPORT: "This machine has no IPv6. Name an IPv4 address with --host.",
    errno.EACCES: "Ports below 1024 need a privilege. Choose a higher --port.",
}


class _Address(NamedTuple):
    """One address of a host, as getaddrinfo returns it."""

    family: int
    host: str
    rest: tuple[int, ...]  # flow label and scope of an IPv6 address


def bind_listeners(host: str, port: int) -> list[socket.socket]:
    """Bind each address of `host` that this machine has, all to the same port. Port 0 picks a free one.

    The host `::` means all IPv6 and IPv4 addresses. An address that this machine lacks is skipped and logged. An
    address that is in use or forbidden is an error: another controller may listen there and would receive some of the
    requests.

    Raises SettingsError if no address can be bound, or if one is in use or forbidden.
    """
    addresses = _resolve(host)
    for tries_left in reversed(range(_TRIES)):
        try:
            return _bind_all(addresses, host, port)
        except _PortTaken:
            if not tries_left:
                break
    raise SettingsError(f"No port is free on all addresses of --host {host}. Name a --port, or another --host.")


def listen(listeners: Sequence[socket.socket], host: str, port: int) -> None:
    """Start to listen. Connections wait in the backlog until a replica accepts them.

    Raises SettingsError if another program has started to listen on one of the addresses since they were bound.
    """
    for listener in listeners:
        try:
            listener.listen(BACKLOG)
        except OSError as error:
            raise _cannot_open(host, port, listener.getsockname()[0], error) from error


def url(scheme: str, host: str, listeners: Sequence[socket.socket]) -> str:
    """Return the URL of the listeners, with the host as the user wrote it."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listeners[0].getsockname()[1]}"


def _resolve(host: str) -> list[_Address]:
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise SettingsError(
            f"--host {host} does not resolve to an address: {error}. Name an address of this machine."
        ) from error
    addresses = (_Address(family, str(address[0]), tuple(address[2:])) for family, _, _, _, address in found)
    return list(dict.fromkeys(addresses))  # a hosts file may list an address twice


class _PortTaken(Exception):
    """The free port of the first address is in use on another address."""


def _bind_all(addresses: Sequence[_Address], host: str, port: int) -> list[socket.socket]:
    with contextlib.ExitStack() as opened:
        dual_stack = [address.host for address in addresses] == ["::"]
        listeners, missing = _bind_present(addresses, host, port, dual_stack, opened)
        if not listeners and dual_stack:  # this machine has no IPv6
            listeners, _ = _bind_present([_Address(socket.AF_INET, "0.0.0.0", ())], host, port, False, opened)
        if not listeners:
            name, problem = next(iter(missing.items()))
            raise _cannot_open(host, port, name, problem)
        opened.pop_all()
    for name, problem in missing.items():
        logger.info("Not listening on %s of --host %s: %s.", name, host, problem.strerror)
    return listeners


def _bind_present(
    addresses: Sequence[_Address], host: str, port: int, dual_stack: bool, opened: contextlib.ExitStack
) -> tuple[list[socket.socket], dict[str, OSError]]:
    """Bind the addresses that this machine has. Return the sockets, and the errors of all other addresses."""
    listeners: list[socket.socket] = []
    missing: dict[str, OSError] = {}
    for address in addresses:
        try:
            listener = _bind(address, _port(listeners) or port, dual_stack)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and listeners and port == 0:
                raise _PortTaken from error
            if error.errno in _FATAL_ERRORS:
                raise _cannot_open(host, port, address.host, error) from error
            missing[address.host] = error
        else:
            listeners.append(opened.enter_context(listener))
    return listeners, missing


def _port(listeners: Sequence[socket.socket]) -> int:
    return int(listeners[0].getsockname()[1]) if listeners else 0


def _bind(address: _Address, port: int, dual_stack: bool) -> socket.socket:
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == socket.AF_INET6:
            # With the option off, an IPv6 socket accepts IPv4 connections too, which prevents a socket for 0.0.0.0.
            only = not dual_stack and IPv6Address(address.host).ipv4_mapped is None
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        socket_address: Any = (address.host, port, *address.rest)
        listener.bind(socket_address)
    except BaseException:
        listener.close()
        raise
    return listener


def _cannot_open(host: str, port: int, address: str, error: OSError) -> SettingsError:
    where = f"--host {host}" if address == host else f"--host {host} ({address})"
    hint = _HINTS.get(error.errno or 0, "Choose another address.")
    return SettingsError(f"--port {port} on {where} cannot be opened: {error.strerror}. {hint}")
