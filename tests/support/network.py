"""Keeps the tests on this machine: their process connects to no other machine, and looks up no name of one.

Controllers contact every worker. So workers that do not exist have loopback addresses, or names under .invalid.
"""

import ipaddress
import socket
import sys
from urllib.parse import urlsplit

anywhere = False  # True in the tests of deploy/, which connect to containers
outside: list[str] = []  # refused attempts to reach another machine


def is_here(host: str) -> bool:
    if is_address(host):
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    return host == "localhost" or is_invented(host)


def is_address(host: object) -> bool:
    try:
        ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host))
    except ValueError:
        return False
    return True


def is_invented(name: str) -> bool:
    return name.rpartition(".")[2] == "invalid"


def check_worker(name: object) -> None:
    """Assert that a controller may contact a worker of this name."""
    host = urlsplit(name).hostname if isinstance(name, str) else None
    assert anywhere or host is None or is_here(host), f"{name} is not on this machine: the controller would contact it"


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # else the path of a unix socket
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
        if is_address(host):
            return  # no look-up is needed
    else:
        return
    name = host.decode() if isinstance(host, bytes) else host
    if not isinstance(name, str) or not name or anywhere:
        return
    if not is_here(name):
        outside.append(f"{event} {name}")
        raise AssertionError(f"A test wants to connect to {name}, which is not on this machine.")
    if is_invented(name):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


sys.addaudithook(_hook)
