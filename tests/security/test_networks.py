"""The addresses of callers, and lists of networks."""

from typing import Any

import pytest

from controller.domain.errors import InvalidInput
from controller.security.networks import Networks, caller_address, is_loopback, published_host


def scope(client: str, *forwarded: str) -> dict[str, Any]:
    headers = [(b"host", b"h"), *((b"x-forwarded-for", each.encode()) for each in forwarded)]
    return {"client": (client, 1), "headers": headers}


def test_networks_contain_addresses_of_both_families() -> None:
    networks = Networks("10.0.0.0/8, fd00::/8,192.0.2.7")
    inside = ("10.1.2.3", "fd12::1", "192.0.2.7", "::ffff:10.1.2.3", "fd12::1%eth0")
    assert [address for address in inside if address not in networks] == []
    outside = ("11.0.0.1", "fe80::1", "192.0.2.8", "::ffff:11.0.0.1", "", "localhost", "10.1.2", "10.1.2.3.4")
    assert [address for address in outside if address in networks] == []
    assert not Networks("")
    assert "10.0.0.1" not in Networks("")


@pytest.mark.parametrize("text", ["10.0.0.1/8", "x", "10.0.0.0/33", "10.0.0.0/8 11.0.0.0/8"])
def test_wrong_networks_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a network such as"):
        Networks(text)


@pytest.mark.parametrize(
    ("client", "forwarded", "address"),
    [
        ("203.0.113.5", [], "203.0.113.5"),
        ("203.0.113.5", ["10.9.9.9"], "203.0.113.5"),  # not a proxy of ours: the header is a lie
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["192.168.0.1, 203.0.113.5"], "203.0.113.5"),  # the caller wrote the first one
        ("10.0.0.1", ["192.168.0.1, 203.0.113.5, 10.0.0.2"], "203.0.113.5"),  # two proxies of ours
        ("10.0.0.1", ["192.168.0.1", "203.0.113.5"], "203.0.113.5"),  # two headers are one list
        ("10.0.0.1", ["203.0.113.5, garbage"], "10.0.0.1"),
        ("10.0.0.1", ["garbage, 203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", [", ,"], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", [", ".join(["198.51.100.1"] + ["10.0.0.2"] * 100_000)], "10.0.0.2"),
    ],
)
def test_only_trusted_proxies_are_believed(client: str, forwarded: list[str], address: str) -> None:
    assert caller_address(scope(client, *forwarded), Networks("10.0.0.0/8")) == address
    assert caller_address(scope(client, *forwarded), Networks()) == client
    assert caller_address({"client": None, "headers": []}, Networks("10.0.0.0/8")) == ""


def test_loopback_addresses() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST."):
        assert is_loopback(host), host
    for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "", "::ffff:10.0.0.1"):
        assert not is_loopback(host), host


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1:21001", "127.0.0.1"),
        ("21001", "0.0.0.0"),
        (":21001", "0.0.0.0"),
        ("[::1]:21001", "[::1]"),
        ("::1", "::1"),
        ("localhost:1", "localhost"),
        ("gateway", "gateway"),
        ("0.0.0.0:21001", "0.0.0.0"),
    ],
)
def test_published_addresses_may_have_a_port(text: str, host: str) -> None:
    assert published_host(text) == host
