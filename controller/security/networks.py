"""Addresses of callers, and lists of networks."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

from controller.domain.errors import InvalidInput

_FORWARDED_FOR: Final = b"x-forwarded-for"
_MAX_HOPS: Final = 32  # entries of X-Forwarded-For that are read


class Networks:
    """A list of networks, such as 10.0.0.0/8 and fd00::/8. Raises InvalidInput if a part of the text is no network.

    text: networks or addresses, with commas between them.
    """

    def __init__(self, text: str = "") -> None:
        self._networks = [_network(part.strip()) for part in text.split(",") if part.strip()]
        self._contains = lru_cache(maxsize=4096)(self._search)  # callers come back

    def __bool__(self) -> bool:
        """Return True if the list is not empty."""
        return bool(self._networks)

    def __contains__(self, address: str) -> bool:
        """Return True if a network of the list has the address."""
        return bool(self._networks) and self._contains(address)

    def _search(self, address: str) -> bool:
        parsed = _parse(address)
        return parsed is not None and any(parsed in network for network in self._networks)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise InvalidInput("network", f"{text!r} is not a network such as 10.0.0.0/8: {error}") from error


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    # A socket that listens on both families shows an IPv4 caller by its IPv4-mapped address.
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed


def network_of(address: str) -> str:
    """Return what counts as one caller: an IPv4 address, or the network /64 of an IPv6 address."""
    parsed = _parse(address)
    return str(ip_network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else str(parsed or address)


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach a host: an IP address, or the name localhost."""
    parsed = _parse(host.strip("[]"))
    return parsed.is_loopback if parsed is not None else host.lower().rstrip(".") == "localhost"


def published_host(text: str) -> str:
    """Return the host in an address such as 127.0.0.1:21001. A port alone is published at all addresses: 0.0.0.0."""
    if _parse(text.strip("[]")) is not None:
        return text
    host, _, port = text.rpartition(":")
    return host or ("0.0.0.0" if port.isdecimal() or not port else port)


def caller_address(scope: Any, proxies: Networks) -> str:
    """Return the IP address of the caller of an HTTP request. "" if it is unknown.

    It is the address of the connection. If that is a trusted proxy, it is the last address in X-Forwarded-For that is
    not one. Each proxy appends the address of its own caller, and the caller may have written the rest.
    """
    client = scope["client"]
    address: str = client[0] if client else ""
    if not proxies or address not in proxies:
        return address
    for hop in _forwarded_for(scope["headers"]):
        if _parse(hop) is None:
            return address  # what follows was not written by a proxy of ours
        address = hop
        if hop not in proxies:
            return address
    return address


def _forwarded_for(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Return the addresses in X-Forwarded-For, the last one first."""
    values = [value.decode("latin-1") for name, value in headers if name == _FORWARDED_FOR]
    hops = [hop.strip() for hop in ",".join(values).split(",") if hop.strip()]
    return hops[: -_MAX_HOPS - 1 : -1]
