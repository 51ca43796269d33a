"""Patterns for worker addresses, as in `--worker-allow`: host names with wildcards, IP addresses, networks, ports."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from controller.domain.errors import SettingsError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

FORMS: Final = "a host name such as *.gpu.internal, an IP address, or a network such as 10.0.0.0/8 or [fd00::/8]"

_MAX_PORT: Final = 65535
_ALL_PORTS: Final = (1, _MAX_PORT)
_PORTS: Final = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?\Z")
_LABEL: Final = re.compile(r"[a-z0-9_*]([a-z0-9_*-]{0,62})\Z")
_NUMERIC: Final = re.compile(r"([0-9*]+|0x[0-9a-f*]*)\Z")

# Prefixes of IPv6 addresses that contain an IPv4 address.
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")  # RFC 8215
_TRANSLATED: Final = IPv6Network("::ffff:0:0:0/96")  # SIIT, RFC 2765
_COMPATIBLE: Final = IPv6Network("::/96")
_6TO4: Final = IPv6Network("2002::/16")
_TEREDO: Final = IPv6Network("2001::/32")
_ISATAP: Final = 0x5EFE
_LOOPBACK: Final = IPv6Address(1)


@dataclass(frozen=True, slots=True)
class WorkerPattern:
    """One pattern.

    network: the addresses that the pattern covers. None for a pattern of host names.
    labels: a pattern for each label of a host name, from the left. Empty for a pattern of addresses. The pattern "*"
        covers every host name and every address.
    ports: the first and the last port.
    """

    text: str
    network: Network | None
    labels: tuple[str, ...]
    ports: tuple[int, int]

    @property
    def covers_all_hosts(self) -> bool:
        """True for "*"."""
        return self.labels == ("*",)

    def has_port(self, port: int) -> bool:
        """Return True if the pattern covers a port."""
        return self.ports[0] <= port <= self.ports[1]

    def covers_address(self, address: Address, port: int) -> bool:
        """Return True if the pattern covers an address and a port."""
        return self.has_port(port) and (
            self.covers_all_hosts or (self.network is not None and is_within(address, self.network))
        )

    def covers_name(self, host: str, port: int) -> bool:
        """Return True if the pattern covers a host name and a port. The host name must be in lower case.

        `*` stands for any characters of one label. `*.` at the start stands for one or more labels.
        """
        if not self.has_port(port) or not self.labels:
            return False
        if self.covers_all_hosts:
            return True
        labels = host.split(".")
        patterns = self.labels
        if patterns[0] == "*":
            patterns = patterns[1:]
            labels = labels[1:][-len(patterns) :]
        return len(labels) == len(patterns) and all(map(_label_matches, patterns, labels))


@lru_cache(maxsize=1_000)
def _label_pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))) + r"\Z")


def _label_matches(pattern: str, label: str) -> bool:
    return bool(_label_pattern(pattern).match(label))


def parse_pattern(text: str) -> WorkerPattern:
    """Parse one pattern. Raises ValueError, whose message describes the problem and does not quote the pattern."""
    pattern = text.lower()
    if pattern.startswith("["):
        host, bracket, port = pattern[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError("brackets must enclose an IPv6 address or network, and only ports may follow")
        return WorkerPattern(text, _network(host, IPv6Network), (), _ports(port[1:] if port else None))
    if pattern.count(":") > 1:  # an IPv6 address without brackets, which cannot have a port
        return WorkerPattern(text, _network(pattern, IPv6Network), (), _ALL_PORTS)
    host, colon, port = pattern.partition(":")
    ports = _ports(port if colon else None)
    if re.match(r"[0-9./]+\Z", host):
        return WorkerPattern(text, _network(host, IPv4Network), (), ports)
    labels = tuple(host.removesuffix(".").split("."))
    if not all(map(_LABEL.match, labels)):
        raise ValueError("it is neither a host name nor an IP address or network")
    if labels != ("*",) and (_NUMERIC.match(labels[-1]) or (len(labels) > 1 and "*" in labels[-1])):
        raise ValueError(
            "a host name must not end in a number or, after a dot, in a label with a wildcard. Write a network with "
            "its prefix length, such as 10.0.0.0/8"
        )
    return WorkerPattern(text, None, labels, ports)


def _network(text: str, kind: type[Network]) -> Network:
    try:
        network = ip_network(text)
    except ValueError:
        network = None
    if not isinstance(network, kind) or "%" in text:
        raise ValueError("it has no valid IP address or network. The bits after the prefix of a network must be 0")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        raise ValueError("an IPv4 address must be written as 10.0.0.5, without ::ffff:")
    return network


def _ports(text: str | None) -> tuple[int, int]:
    if text is None:
        return _ALL_PORTS
    match = _PORTS.match(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= _MAX_PORT:
        raise ValueError("a port must be from 1 to 65535, and a range of ports is written as 21002-21100")
    return first, last


def parse_patterns(text: str) -> tuple[WorkerPattern, ...]:
    """Return the patterns in the value of --worker-allow. Raises SettingsError."""
    patterns = []
    for part in text.split(",") if text else ():
        try:
            patterns.append(parse_pattern(part.strip()))
        except ValueError as error:
            raise SettingsError(
                f"--worker-allow must have patterns separated by commas. Each is {FORMS}. A port or a range of ports "
                f"may follow, such as :21002-21100. This part is wrong: {part.strip()!r}, because {error}."
            ) from error
    return tuple(patterns)


def is_within(address: Address, network: Network) -> bool:
    """Return True if a network contains an address. An IPv4 address is in no IPv6 network."""
    return address.version == network.version and address in network


def parse_address(host: str) -> Address | None:
    """Return the IP address that a connection to `host` reaches, or None if it is a host name.

    An IPv4 address that is written as an IPv6 address (IPv4-mapped) is reached by IPv4.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def embedded_addresses(address: Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses in an IPv6 address that a translator or a tunnel would send a connection to."""
    if isinstance(address, IPv4Address):
        return
    bits = int(address)
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    if address in _NAT64 or address in _TRANSLATED or (address in _COMPATIBLE and address > _LOOPBACK):
        yield IPv4Address(bits & 0xFFFFFFFF)
    if address in _LOCAL_NAT64:  # a translator may use any of these prefix lengths
        yield from (IPv4Address(_embedded_ipv4(bits, length)) for length in (48, 56, 64))
        yield IPv4Address(bits & 0xFFFFFFFF)
    if address in _6TO4:
        yield IPv4Address(bits >> 80 & 0xFFFFFFFF)
    if address in _TEREDO:
        yield IPv4Address(bits >> 64 & 0xFFFFFFFF)  # the server
        yield IPv4Address(~bits & 0xFFFFFFFF)  # the client
    if (bits >> 32 & 0xFFFF) == _ISATAP and (bits >> 48 & 0xFDFF) == 0:
        yield IPv4Address(bits & 0xFFFFFFFF)


def _embedded_ipv4(bits: int, length: int) -> int:
    """Return the IPv4 address after a prefix of 48, 56 or 64 bits. Bits 64 to 71 are not part of it (RFC 6052)."""
    without_gap = bits >> 64 << 56 | bits & (1 << 56) - 1  # 120 bits
    return without_gap >> 120 - length - 32 & 0xFFFFFFFF
