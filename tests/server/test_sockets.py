"""The sockets that a controller listens on: which addresses of a host, and what happens if one cannot be bound."""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from controller.domain.errors import SettingsError
from controller.server import sockets as listening
from controller.server.sockets import bind_listeners, listen, url
from tests.system.processes import free_port

Resolve = Callable[..., None]


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Give the name `host` addresses, as a hosts file would."""
    real = socket.getaddrinfo

    def names(*addresses: str) -> None:
        def getaddrinfo(host: str, *arguments: Any, **options: Any) -> list[Any]:
            hosts = addresses if host == "host" else (host,)
            return [entry for each in hosts for entry in real(each, *arguments, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return names


@contextlib.contextmanager
def bound(host: str, port: int = 0) -> Iterator[list[tuple[str, int]]]:
    """The addresses that are listened on."""
    listeners = bind_listeners(host, port)
    try:
        listen(listeners, host, port)
        yield [listener.getsockname()[:2] for listener in listeners]
    finally:
        close(listeners)


def close(listeners: Sequence[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def reached(host: str, port: int) -> bool:
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
            assert reached("127.0.0.1", one)
            assert reached("127.0.0.2", one)


def test_an_address_that_is_named_twice_is_bound_once(resolve: Resolve) -> None:
    resolve("127.0.0.1", "127.0.0.1")
    with bound("host") as addresses:
        assert len(addresses) == 1


def test_addresses_that_the_machine_lacks_are_skipped(resolve: Resolve, caplog: pytest.LogCaptureFixture) -> None:
    resolve("198.51.100.1", "127.0.0.1")
    with caplog.at_level("INFO"), bound("host") as [(host, _)]:
        assert host == "127.0.0.1"
    [line] = caplog.messages
    assert line == "Not listening on 198.51.100.1 of --host host: Cannot assign requested address."


def test_a_host_of_which_no_address_can_be_bound_is_refused(resolve: Resolve) -> None:
    resolve("198.51.100.1", "203.0.113.1")
    with pytest.raises(SettingsError, match=r"--port 5 on --host host \(198.51.100.1\) cannot .* Name an address of"):
        bind_listeners("host", 5)


def test_an_address_in_use_is_an_error_though_others_are_free(resolve: Resolve) -> None:
    resolve("127.0.0.1", "127.0.0.2")
    with bound("127.0.0.2") as [(_, port)]:
        with pytest.raises(SettingsError, match=r"--host host \(127.0.0.2\) .* Is another controller running there"):
            bind_listeners("host", port)
        with bound("127.0.0.1", port):
            pass  # it was closed again


def test_a_free_port_is_free_on_all_addresses(resolve: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port that the first address got is in use on the second."""
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


def test_of_two_that_bind_at_once_only_one_listens() -> None:
    one = bind_listeners("127.0.0.1", 0)
    port = one[0].getsockname()[1]
    two = bind_listeners("127.0.0.1", port)
    listen(one, "127.0.0.1", port)
    with pytest.raises(SettingsError, match="Is another controller running there"):
        listen(two, "127.0.0.1", port)
    close([*one, *two])


@ipv6
@pytest.mark.parametrize("host", ["::", "::0", "0:0:0:0:0:0:0:0"])
def test_the_ipv6_address_for_all_is_for_ipv4_too(host: str) -> None:
    with bound(host) as [(_, port)]:
        assert reached("127.0.0.1", port)
        assert reached("::1", port)


@ipv6
def test_other_ipv6_addresses_are_not(resolve: Resolve) -> None:
    with bound("::1") as [(_, port)]:
        assert not reached("127.0.0.1", port)
    resolve("::", "0.0.0.0")
    with bound("host") as addresses:
        assert [host for host, _ in addresses] == ["::", "0.0.0.0"]


@ipv6
def test_an_ipv4_address_in_the_form_of_ipv6() -> None:
    with bound("::ffff:127.0.0.1") as [(_, port)]:
        assert reached("127.0.0.1", port)


def test_all_addresses_of_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int = socket.AF_INET, *arguments: Any, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *arguments, **options)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    with bound("::") as [(host, port)]:
        assert host == "0.0.0.0"
        assert reached("127.0.0.1", port)
    with pytest.raises(SettingsError, match="This machine has no IPv6"):
        bind_listeners("::1", 0)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), pytest.param("::1", "[::1]", marks=ipv6)])
def test_the_url_has_the_port_that_was_found(host: str, shown: str) -> None:
    listeners = bind_listeners(host, 0)
    assert url("https", host, listeners) == f"https://{shown}:{listeners[0].getsockname()[1]}"
    close(listeners)
