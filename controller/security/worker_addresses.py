"""Decides which addresses of workers the controller connects to (`--worker-allow`).

A worker's name is an address that comes from the network. Without this check, a registration could point the controller
and its clients at any internal service.
"""

import logging
from collections.abc import Sequence
from ipaddress import IPv6Network, ip_network
from typing import Final

from controller.domain.errors import SettingsError, WorkerNotAllowed
from controller.security.worker_patterns import (
    Address,
    Network,
    embedded_addresses,
    is_within,
    parse_address,
    parse_patterns,
)

logger = logging.getLogger("controller")

_IPV6_LINK_LOCAL: Final = IPv6Network("fe80::/10")
# Only machines on the same link reach these addresses. Cloud machines read their credentials from one of them.
_LINK_LOCAL: Final[tuple[Network, ...]] = (ip_network("169.254.0.0/16"), _IPV6_LINK_LOCAL)
# Other addresses where machines of a cloud read their credentials or configuration.
_METADATA: Final[tuple[Network, ...]] = (
    ip_network("fd00:ec2::/32"),  # AWS
    ip_network("fd20:ce::254"),  # Google Cloud
    ip_network("100.100.100.200"),  # Alibaba Cloud
    ip_network("fd00:100::100:200"),  # Alibaba Cloud
    ip_network("fd00:a9fe:a9fe::1"),  # Akamai
    ip_network("168.63.129.16"),  # Azure
    ip_network("192.0.0.192"),  # Oracle Cloud
    ip_network("fd00:c1::a9fe:a9fe"),  # Oracle Cloud
    ip_network("fd00:42::42"),  # Scaleway
)
_GUARDED: Final = (*_LINK_LOCAL, *_METADATA)
# Not the addresses of one machine. A connection to an unspecified address reaches the controller's own machine.
_UNSPECIFIED: Final[tuple[Network, ...]] = (ip_network("0.0.0.0/8"), ip_network("::/128"))
_MANY: Final[tuple[Network, ...]] = (
    ip_network("224.0.0.0/4"),
    ip_network("ff00::/8"),
    ip_network("255.255.255.255"),
)
_NEVER: Final = (*_UNSPECIFIED, *_MANY)
_MAX_LOGGED: Final = 1_000


class WorkerAddresses:
    """The rule for the addresses of workers.

    allowed: the value of --worker-allow. Without it, all addresses are allowed, with the exceptions below.

    Link-local and cloud metadata addresses need a pattern of their own, which covers nothing else: 0.0.0.0/0 does not
    allow them. Unspecified, multicast and broadcast addresses are never allowed. The same holds for IPv6 addresses that
    contain such an IPv4 address.

    Raises SettingsError if `allowed` is wrong.
    """

    def __init__(self, allowed: str | None = None) -> None:
        self._patterns = parse_patterns(allowed or "")
        self._logged: set[tuple[str, int]] = set()
        for pattern in self._patterns:
            if pattern.network is not None and _is_part(pattern.network, _NEVER):
                raise SettingsError(
                    f"--worker-allow has {pattern.text}, which cannot be the address of a worker: it is unspecified, "
                    "multicast or broadcast. Name the worker's own address, such as 127.0.0.1 or 10.0.0.5."
                )

    def allows_name(self, host: str, port: int) -> bool:
        """Return True if a host name is allowed with all addresses that need not be named."""
        return not self._patterns or any(pattern.covers_name(host.lower(), port) for pattern in self._patterns)

    def usable(self, host: str, port: int, addresses: Sequence[str]) -> list[str]:
        """Return those of a worker's addresses that connections may use.

        host: a host name or an IP address, as in the name of the worker.
        addresses: those of the host. Each may have an IPv6 zone.

        An IPv6 link-local address is left out if there are others, because local resolvers add it to the names of
        machines. Raises WorkerNotAllowed if any other address is refused: a client of the worker could connect to it.
        """
        parsed = {text: parse_address(text) for text in addresses}
        others = [text for text, address in parsed.items() if address and not is_within(address, _IPV6_LINK_LOCAL)]
        kept = others or list(parsed)
        name_allowed = parse_address(host) is None and self.allows_name(host, port)
        for text in kept:
            address = parsed[text]
            problem = self._problem(address, port, name_allowed) if address else "is not an IP address"
            if problem:
                raise WorkerNotAllowed(f"{_described(host, text, port)} {problem}.")
        return kept

    def _problem(self, address: Address, port: int, name_allowed: bool) -> str:
        """Return why an address is refused, or "" if it is allowed."""
        for each in (address, *embedded_addresses(address)):
            # Some prefixes say only where an IPv4 address may be. Then 0.0.0.0 means that none is there.
            if _contains(_NEVER if each is address else _MANY, each):
                return "is unspecified, multicast or broadcast, so it is not the address of a worker"
            named = any(
                pattern.network is not None
                and _is_part(pattern.network, _GUARDED)
                and pattern.covers_address(each, port)
                for pattern in self._patterns
            )
            if not named and _contains(_LINK_LOCAL, each):
                return (
                    "is a link-local address, where cloud machines read their credentials. If it is a worker's, name "
                    "it in --worker-allow"
                )
            if not named and _contains(_METADATA, each):
                return (
                    "is the address of a cloud metadata service, where machines read their credentials. If it is a "
                    "worker's, name it in --worker-allow"
                )
        if name_allowed or not self._patterns or any(p.covers_address(address, port) for p in self._patterns):
            return ""
        return "is not in --worker-allow of this controller"

    def log_refusal(self, host: str, port: int, error: WorkerNotAllowed) -> None:
        """Log a refused connection, once for each host and port."""
        if (host, port) in self._logged:
            return
        if len(self._logged) >= _MAX_LOGGED:
            self._logged.clear()
        self._logged.add((host, port))
        logger.warning(
            "Refused to connect to a worker: %s It gets requests only if no other worker can. Remove it (POST "
            "/remove_worker), or add it to --worker-allow. This is logged once.",
            error,
        )


def _described(host: str, address: str, port: int) -> str:
    location = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return location if host == address else f"{host} has the address {location}, which"


def _contains(networks: Sequence[Network], address: Address) -> bool:
    return any(is_within(address, network) for network in networks)


def _is_part(network: Network, of: Sequence[Network]) -> bool:
    return any(network.version == other.version and network.subnet_of(other) for other in of)  # type: ignore[arg-type]
