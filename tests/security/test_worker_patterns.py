"""Patterns of --worker-allow: what they cover, and what is refused at the start."""

from ipaddress import ip_address

import pytest

from controller.domain.errors import SettingsError
from controller.security.worker_patterns import embedded_addresses, parse_address, parse_pattern, parse_patterns


def covers(pattern: str, host: str, port: int = 21002) -> bool:
    parsed, address = parse_pattern(pattern), parse_address(host)
    return parsed.covers_name(host, port) if address is None else parsed.covers_address(address, port)


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        ("gpu1", ["gpu1"], ["gpu11", "gpu1.internal", "10.0.0.1"]),
        ("GPU1.Internal.", ["gpu1.internal"], ["gpu1"]),
        (
            "*.gpu.internal",
            ["a.gpu.internal", "a.b.gpu.internal"],
            ["gpu.internal", "agpu.internal", "a.gpu.internal.x"],
        ),
        (
            "gpu-*.internal",
            ["gpu-7.internal", "gpu-.internal"],
            ["gpu-7.x.internal", "gpu.internal", "a.gpu-7.internal"],
        ),
        ("gpu-*", ["gpu-7"], ["gpu-7.example.com"]),
        ("a.*.c", ["a.b.c"], ["a.c", "a.b.b.c"]),
        ("*", ["a", "a.b", "10.0.0.1", "fd00::1"], []),
        ("10.0.0.5", ["10.0.0.5", "::ffff:10.0.0.5"], ["10.0.0.50", "a", "64:ff9b::a00:5"]),
        ("10.0.0.0/8", ["10.255.0.1"], ["11.0.0.1", "::a00:1", "fd00::1"]),
        ("fd00::5", ["fd00::5"], ["fd00::6", "10.0.0.5"]),
        ("[fd00::/8]", ["fd12::1"], ["fe00::1"]),
        ("0.0.0.0/0", ["1.2.3.4", "::ffff:1.2.3.4"], ["fd00::1", "a"]),
    ],
)
def test_pattern_covers_hosts(pattern: str, covered: list[str], not_covered: list[str]) -> None:
    assert [host for host in covered if not covers(pattern, host)] == []
    assert [host for host in not_covered if covers(pattern, host)] == []


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        ("gpu1", [1, 65535], []),
        ("gpu1:80", [80], [79, 81]),
        ("gpu1:21002-21100", [21002, 21100], [21001, 21101]),
        ("*:80", [80], [81]),
    ],
)
def test_pattern_covers_ports(pattern: str, covered: list[int], not_covered: list[int]) -> None:
    assert [port for port in covered if not covers(pattern, "gpu1", port)] == []
    assert [port for port in not_covered if covers(pattern, "gpu1", port)] == []


@pytest.mark.parametrize(("pattern", "host"), [("10.0.0.0/8:80", "10.1.1.1"), ("[fd00::/8]:80", "fd00::1")])
def test_ports_belong_to_addresses_too(pattern: str, host: str) -> None:
    assert covers(pattern, host, 80)
    assert not covers(pattern, host, 81)


@pytest.mark.parametrize(
    "text",
    [
        "http://a",
        "http://a:80",
        "user@a",
        "a b",
        "a..b",
        ".a",
        "-a",
        "bücher",
        "a:",
        "a:0",
        "a:65536",
        "a:080",
        "a:90-80",
        "a:80-",
        "a:*",
        "10.0.0.*",
        "10.0.0.1*",
        "*.*",
        "gpu.*",
        "gpu.c*",
        "gpu.intern*l",
        "0x7f",
        "2130706433",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "010.0.0.1",
        "10.0.0",
        "[10.0.0.1]",
        "[fd00::1",
        "[fd00::1]80",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "[::ffff:0:0/96]",
        "fd00::1/64",
    ],
)
def test_invalid_pattern_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^--worker-allow must have patterns .*because .*\.$") as caught:
        parse_patterns(f"gpu1,{text}")
    assert repr(text) in str(caught.value)


def test_patterns_are_separated_by_commas() -> None:
    assert [pattern.text for pattern in parse_patterns("a, [fd00::/8]:1-2 ,*.c")] == ["a", "[fd00::/8]:1-2", "*.c"]
    assert parse_patterns("") == ()


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("10.0.0.1", []),
        ("fd00::a9fe:a9fe", []),
        ("::1", []),
        ("::ffff:169.254.1.5", ["169.254.1.5"]),
        ("::169.254.1.5", ["169.254.1.5"]),
        ("::ffff:0:169.254.1.5", ["169.254.1.5"]),
        ("64:ff9b::169.254.1.5", ["169.254.1.5"]),
        ("2002:a9fe:105::1", ["169.254.1.5"]),
        ("2001::5601:fefa", ["0.0.0.0", "169.254.1.5"]),
        ("2001:0:a9fe:105::", ["169.254.1.5", "255.255.255.255"]),
        ("fe00::5efe:169.254.1.5", ["169.254.1.5"]),
        ("fd00::200:5efe:169.254.1.5", ["169.254.1.5"]),
        # RFC 6052: the place of the IPv4 address depends on the length of the prefix, and bits 64 to 71 are left out.
        ("64:ff9b:1:a9fe:1:500::", ["169.254.1.5", "254.1.5.0", "1.5.0.0", "0.0.0.0"]),
        ("64:ff9b:1:aa:a9:fe01:500:0", ["0.170.169.254", "170.169.254.1", "169.254.1.5", "5.0.0.0"]),
        ("64:ff9b:1::169.254.1.5", ["0.0.0.0", "0.0.0.0", "0.0.0.169", "169.254.1.5"]),
    ],
)
def test_ipv4_addresses_in_an_ipv6_address_are_found(address: str, found: list[str]) -> None:
    assert list(map(str, embedded_addresses(ip_address(address)))) == found
