"""The listening sockets: the addresses of a host, and errors if one cannot be bound."""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from controller.domain.errors import SettingsError
from controller.server import sockets as listening
from controller.server.sockets import bind_listeners, listen, url

Resolve = Callable[..., None]


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Return a function that sets the addresses of the name `host`, as a hosts file would."""
    real = socket.getaddrinfo

    def set_addresses(*addresses: str) -> None:
        def getaddrinfo(host: str, *arguments: Any, **options: Any) -> list[Any]:
            hosts = addresses if host == "host" else (host,)
            return [entry for each in hosts for entry in real(each, *arguments, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return set_addresses


@contextlib.contextmanager
def bound(host: str, port: int = 0) -> Iterator[list[tuple[str, int]]]:
    """Listen on a host. Yield the addresses and ports."""
    listeners = bind_listeners(host, port)
    try:
        listen(listeners, host, port)
        yield [listener.getsockname()[:2] for listener in listeners]
    finally:
        close(listeners)


def close(listeners: Sequence[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def is_reachable(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=60):
        return True
    return False


def test_each_address_of_a_name_is_bound_to_the_same_port(resolve: Resolve) -> None:
    resolve("127.0.0.1", "127.0.0.2")
    for port in (0, free_port()):
        with bound("host", port) as [(first, one), (second, two)]:
            assert (first, second) == ("127.0.0.1", "127.0.0.2")
            assert one == two != 0
            assert port in (0, one)
            assert is_reachable("127.0.0.1", one)
            assert is_reachable("127.0.0.2", one)


def test_duplicate_address_is_bound_once(resolve: Resolve) -> None:
    resolve("127.0.0.1", "127.0.0.1")
    with bound("host") as addresses:
        assert len(addresses) == 1


def test_addresses_of_other_machines_are_skipped(resolve: Resolve, caplog: pytest.LogCaptureFixture) -> None:
    resolve("198.51.100.1", "127.0.0.1")
    with caplog.at_level("INFO"), bound("host") as [(host, _)]:
        assert host == "127.0.0.1"
    [line] = caplog.messages
    assert line == "Not listening on 198.51.100.1 of --host host: Cannot assign requested address."


def test_host_without_an_address_of_this_machine_is_an_error(resolve: Resolve) -> None:
    resolve("198.51.100.1", "203.0.113.1")
    with pytest.raises(SettingsError, match=r"--port 5 on --host host \(198.51.100.1\) cannot .* Name an address of"):
        bind_listeners("host", 5)


def test_address_in_use_is_an_error_even_if_others_are_free(resolve: Resolve) -> None:
    resolve("127.0.0.1", "127.0.0.2")
    with bound("127.0.0.2") as [(_, port)]:
        with pytest.raises(SettingsError, match=r"--host host \(127.0.0.2\) .* Is another controller running there"):
            bind_listeners("host", port)
        with bound("127.0.0.1", port):
            pass  # the error left the free address closed


def test_port_that_needs_a_privilege_is_an_error_with_a_hint() -> None:
    first_free = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first_free <= 80:
        pytest.skip("NOT TESTED, a port that needs a privilege: here, all users may listen on port 80")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # the tests may run as root, which may use all ports
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            bind_listeners("127.0.0.1", 80)
        except BaseException as error:  # the child must not run the rest of the tests
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        assert re.match(r"SettingsError: --port 80 .* Ports below 1024 need a privilege", answer.read())


def test_port_0_binds_a_port_that_is_free_on_all_addresses(resolve: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first attempt gets a port that is in use on the second address."""
    resolve("127.0.0.1", "127.0.0.2")
    others: list[socket.socket] = []
    bind = listening._bind

    def bind_after_another(address: Any, port: int, dual_stack: bool) -> socket.socket:
        if port and not others:
            others.append(socket.create_server(("127.0.0.2", port)))
        return bind(address, port, dual_stack)

    monkeypatch.setattr(listening, "_bind", bind_after_another)
    with bound("host") as [(_, one), (_, two)]:
        assert one == two != others[0].getsockname()[1]
    close(others)


def test_second_of_two_controllers_that_bound_the_same_port_cannot_listen() -> None:
    one = bind_listeners("127.0.0.1", 0)
    port = one[0].getsockname()[1]
    two = bind_listeners("127.0.0.1", port)
    listen(one, "127.0.0.1", port)
    with pytest.raises(SettingsError, match="Is another controller running there"):
        listen(two, "127.0.0.1", port)
    close([*one, *two])


@ipv6
@pytest.mark.parametrize("host", ["::", "::0", "0:0:0:0:0:0:0:0"])
def test_unspecified_ipv6_address_accepts_ipv4(host: str) -> None:
    with bound(host) as [(_, port)]:
        assert is_reachable("127.0.0.1", port)
        assert is_reachable("::1", port)


@ipv6
def test_specific_ipv6_address_accepts_no_ipv4(resolve: Resolve) -> None:
    with bound("::1") as [(_, port)]:
        assert not is_reachable("127.0.0.1", port)
    resolve("::", "0.0.0.0")
    with bound("host") as addresses:
        assert [host for host, _ in addresses] == ["::", "0.0.0.0"]


@ipv6
def test_ipv4_mapped_ipv6_address_accepts_ipv4() -> None:
    with bound("::ffff:127.0.0.1") as [(_, port)]:
        assert is_reachable("127.0.0.1", port)


def test_unspecified_address_falls_back_to_ipv4_on_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int = socket.AF_INET, *arguments: Any, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *arguments, **options)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    with bound("::") as [(host, port)]:
        assert host == "0.0.0.0"
        assert is_reachable("127.0.0.1", port)
    with pytest.raises(SettingsError, match="This machine has no IPv6"):
        bind_listeners("::1", 0)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), pytest.param("::1", "[::1]", marks=ipv6)])
def test_url_contains_the_port_that_was_bound(host: str, shown: str) -> None:
    listeners = bind_listeners(host, 0)
    assert url("https", host, listeners) == f"https://{shown}:{listeners[0].getsockname()[1]}"
    close(listeners)
