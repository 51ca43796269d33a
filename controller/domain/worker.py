"""What a worker is: its name, what it says of itself, and what the registry knows of it."""

import math
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from socket import AF_INET6, inet_ntop
from typing import Final
from urllib.parse import urlsplit

from controller.domain.errors import InvalidInput

MAX_NAME_LENGTH: Final = 1024
MAX_MODELS: Final = 512
MAX_MODEL_NAME_LENGTH: Final = 512
MAX_QUEUE_LENGTH: Final = 10**9
MAX_CAPACITY: Final = 10**6
MIN_SPEED: Final = 1e-6
MAX_SPEED: Final = 1e9

# What may stand in a URL (RFC 3986), less what could reach outside a key or a log line: no braces, no spaces,
# no control characters, nothing beyond ASCII. urlsplit() alone would silently drop tabs and line breaks.
_URL_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+\Z")
_LABEL: Final = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\.?\Z")
_NETWORK_LOCATION: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:]+)(:|:[1-9][0-9]*)?\Z")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_NAT64: Final = ip_network("64:ff9b::/96")
_NUMERIC_LABEL: Final = re.compile(r"([0-9]+|0[xX][0-9a-fA-F]*)\Z")
# Control characters would reach log lines; half of a surrogate pair cannot be encoded for the store.
_NOT_IN_MODEL_NAMES: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@lru_cache(maxsize=10_000)  # a heartbeat brings the same name again and again; to check it takes 5 microseconds
def worker_name(text: str) -> str:
    """Return the canonical form of a worker's name, so that all spellings of one URL name one worker.

    The name is an http(s) URL. Scheme and host become lower case. A trailing slash, the scheme's default port and the
    final dot of a host name are dropped. An IPv6 address is written in its shortest form (RFC 5952).

    Raises InvalidInput for anything that is not such a URL, has a query, a fragment or a password in it, or
    points to a link-local address (where clouds keep their credentials).
    """
    if len(text) > MAX_NAME_LENGTH:
        raise InvalidInput("worker_name", f"is {len(text)} characters long; at most {MAX_NAME_LENGTH} are taken")
    if not _URL_CHARACTERS.match(text):
        raise InvalidInput(
            "worker_name",
            "has a character that a URL cannot have; send the address at which clients reach the worker, "
            "such as http://10.0.0.5:21002",
        )
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port  # the port is checked when it is read
    except ValueError as error:
        raise InvalidInput("worker_name", f"is not a URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise InvalidInput("worker_name", "must begin with http:// or https://")
    if not host:
        raise InvalidInput("worker_name", "names no host")
    if "@" in parts.netloc:
        raise InvalidInput("worker_name", "must not carry a user name or a password")
    if not _NETWORK_LOCATION.match(parts.netloc):
        raise InvalidInput("worker_name", "must have a host, or a host and a port, after the two slashes")
    if "?" in text or "#" in text:
        raise InvalidInput("worker_name", "must not carry a query or a fragment")
    location = _canonical_host(host)
    if port is not None and port != _DEFAULT_PORTS[parts.scheme]:
        location += f":{port}"
    return f"{parts.scheme}://{location}{parts.path.rstrip('/')}"


def _canonical_host(host: str) -> str:
    """Return a host in the form that stands in a URL. Raises InvalidInput unless it is a name or an IP address."""
    try:
        address = ip_address(host)
    except ValueError:
        # A host name. One that ends in a number would be read as an IPv4 address in disguise, such as 2130706433.
        if not _HOST_NAME.match(host) or _NUMERIC_LABEL.match(host.rstrip(".").rpartition(".")[2]):
            raise InvalidInput("worker_name", "has a host that is neither a host name nor an IP address") from None
        return host.rstrip(".").lower()
    reached = address
    if isinstance(address, IPv6Address):
        reached = IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address.ipv4_mapped or address
    if reached.is_link_local:
        raise InvalidInput("worker_name", "is a link-local address, which only the worker's own link can reach")
    # inet_ntop() and not str(address), which writes IPv4-mapped addresses in another way since Python 3.13.
    return f"[{inet_ntop(AF_INET6, address.packed)}]" if isinstance(address, IPv6Address) else str(address)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker says of itself (FastChat: `worker_get_status`).

    model_names keeps the worker's order, without repetitions. speed is relative to the other workers (FastChat's
    workers say 1). queue_length counts the requests that the worker runs or has waiting.

    A controller below this one reports no models and speed 0 while it has no workers.

    Raises InvalidInput where a value is out of bounds.
    """

    model_names: tuple[str, ...]
    speed: float
    queue_length: int
    capacity: int | None = None

    def __post_init__(self) -> None:
        if len(self.model_names) > MAX_MODELS:
            raise InvalidInput("model_names", f"has {len(self.model_names)} entries; at most {MAX_MODELS} are taken")
        for name in self.model_names:
            if not 1 <= len(name) <= MAX_MODEL_NAME_LENGTH or _NOT_IN_MODEL_NAMES.search(name):
                raise InvalidInput(
                    "model_names",
                    f"each must have 1 to {MAX_MODEL_NAME_LENGTH} characters, no control characters "
                    "and no half of a surrogate pair",
                )
        without_workers = not self.model_names and self.speed == 0
        if not without_workers and not MIN_SPEED <= self.speed <= MAX_SPEED:  # nor NaN
            raise InvalidInput("speed", f"must be a number from {MIN_SPEED:g} to {MAX_SPEED:g}")
        whole_queue_length(self.queue_length)
        if self.capacity is not None and not 1 <= self.capacity <= MAX_CAPACITY:
            raise InvalidInput("capacity", f"must be a whole number from 1 to {MAX_CAPACITY}, or be left out")
        object.__setattr__(self, "model_names", tuple(dict.fromkeys(self.model_names)))


def whole_queue_length(queue_length: float) -> int:
    """Return a queue length in whole requests, rounded up. Raise InvalidInput if it is out of bounds."""
    if not 0 <= queue_length <= MAX_QUEUE_LENGTH:  # nor NaN
        raise InvalidInput("queue_length", f"must be a number from 0 to {MAX_QUEUE_LENGTH}")
    return queue_length if type(queue_length) is int else math.ceil(queue_length)


@dataclass(frozen=True, slots=True)
class Registration:
    """A worker's request to be registered.

    status is what the worker said of itself. check_heart_beat is False for a worker that sends no heartbeats and
    is therefore alive until it is removed. request_id is of this request: what is registered again with it, because the
    answer was lost, is not a new registration.
    """

    name: str
    status: WorkerStatus
    check_heart_beat: bool
    multimodal: bool
    request_id: str = field(default_factory=lambda: secrets.token_hex(12), compare=False)


@dataclass(frozen=True, slots=True)
class Worker:
    """A registered, live worker as the registry knows it.

    status.queue_length is the best guess of what it has to do now; reported is what it last said, booked how many
    requests it was sent since without a lease, leased how many are out with one.

    registration is the number of the worker's last registration: another number means that it has registered
    since. heartbeat_age is in seconds; expires_in too, and None for a worker that need not send heartbeats. draining
    says that it gets no new requests; failing, why it comes behind all others: "request" or "polls" failed, or "";
    polled, that it has answered a poll.
    """

    name: str
    status: WorkerStatus
    check_heart_beat: bool
    multimodal: bool
    registration: int
    heartbeat_age: float
    expires_in: float | None
    leased: int = 0
    draining: bool = False
    failing: str = ""
    polled: bool = False
    reported: int = 0
    booked: int = 0

    @property
    def drained(self) -> bool:
        """Whether it gets no new requests and, by its own word, has none left."""
        return self.draining and not (self.reported or self.booked or self.leased)


@dataclass(frozen=True, slots=True)
class WorkerStatusTotal:
    """A sum over workers: like WorkerStatus, but with no bounds and with speed 0 when there is no worker."""

    model_names: tuple[str, ...]
    speed: float
    queue_length: int
    capacity: int | None = None


def total_status(workers: Iterable[Worker]) -> WorkerStatusTotal:
    """All workers seen as one, for a parent controller (FastChat: `Controller.worker_api_get_status`).

    It has a capacity where all of them tell one: no number of slots would be right else.
    """
    models: set[str] = set()
    speed: float = 0
    queue_length = 0
    capacities: list[int | None] = []
    for worker in workers:
        if not worker.draining:
            models.update(worker.status.model_names)
            speed += worker.status.speed
            capacities.append(worker.status.capacity)
        queue_length += worker.status.queue_length
    told = [capacity for capacity in capacities if capacity is not None]
    capacity = sum(told) if told and len(told) == len(capacities) else None
    return WorkerStatusTotal(tuple(sorted(models)), speed, queue_length, capacity)
