"""Workers: their names, the status that they report, and their state in the registry."""

import math
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from socket import AF_INET6, inet_ntop
from typing import Final
from urllib.parse import urlsplit

from controller.domain.engine import Engine, Protocol, indexed_name
from controller.domain.errors import InvalidInput

MAX_NAME_LENGTH: Final = 1024
MAX_MODELS: Final = 512
MAX_MODEL_NAME_LENGTH: Final = 512
MAX_MODEL_NAMES_LENGTH: Final = 65_536  # of all names of a worker together
MAX_QUEUE_LENGTH: Final = 10**9
MAX_CAPACITY: Final = 10**6
MIN_SPEED: Final = 1e-6
MAX_SPEED: Final = 1e9

# The characters of a URL (RFC 3986). Braces could change a Redis key, and spaces or control characters a log line.
# urlsplit() alone would silently drop tabs and line breaks.
_URL_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+\Z")
_LABEL: Final = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\.?\Z")
_NETWORK_LOCATION: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:]+)(:|:[1-9][0-9]*)?\Z")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ESCAPE: Final = re.compile("%([0-9A-Fa-f]{2})?")
_UNRESERVED: Final = re.compile("[A-Za-z0-9._~-]")
_NUMERIC_LABEL: Final = re.compile(r"([0-9]+|0[xX][0-9a-fA-F]*)\Z")
# Control characters could change a log line. An unpaired surrogate cannot be encoded for Redis.
_NOT_IN_MODEL_NAMES: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_MODEL_NAME_RULE: Final = (
    f"must have 1 to {MAX_MODEL_NAME_LENGTH} characters, without control characters and unpaired surrogates"
)


@lru_cache(maxsize=10_000)  # each heartbeat repeats its worker's name, and checking a name takes 5 microseconds
def worker_name(text: str) -> str:
    """Return the canonical form of a worker's name, so that all spellings of one URL name one worker.

    The name is an http or https URL. Scheme and host become lower case. A trailing slash, the scheme's default port and
    the final dot of a host name are dropped. An IPv6 address is written in its shortest form (RFC 5952). The path is
    normalised as RFC 3986 allows for any URL: without the segments `.` and `..`, and without needless escapes.

    Raises InvalidInput if the text is not such a URL, or contains a query, a fragment, a user name or a password.
    controller/security/worker_addresses.py decides which addresses may be contacted.
    """
    if len(text) > MAX_NAME_LENGTH:
        raise InvalidInput("worker_name", f"has {len(text)} characters, but at most {MAX_NAME_LENGTH} are allowed")
    if not _URL_CHARACTERS.match(text):
        raise InvalidInput(
            "worker_name",
            "has a character that is not allowed in a URL. Send the address at which clients reach the worker, "
            "such as http://10.0.0.5:21002",
        )
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port  # reading an invalid port raises ValueError
    except ValueError as error:
        raise InvalidInput("worker_name", f"is not a URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise InvalidInput("worker_name", "must begin with http:// or https://")
    if not host:
        raise InvalidInput("worker_name", "lacks a host")
    if "@" in parts.netloc:
        raise InvalidInput("worker_name", "must not contain a user name or a password")
    if not _NETWORK_LOCATION.match(parts.netloc):
        raise InvalidInput("worker_name", "must have a host, or a host and a port, after the two slashes")
    if "?" in text or "#" in text:
        raise InvalidInput("worker_name", "must not contain a query or a fragment")
    location = _canonical_host(host)
    if port is not None and port != _DEFAULT_PORTS[parts.scheme]:
        location += f":{port}"
    return f"{parts.scheme}://{location}{_canonical_path(parts.path)}"


def _canonical_path(path: str) -> str:
    """Return a path in its canonical form, without a trailing slash. Raises InvalidInput.

    Source: RFC 3986, sections 5.2.4 and 6.2.2. Repeated slashes stay, because a server may tell them apart.
    """
    if "%" in path:
        path = _ESCAPE.sub(_canonical_escape, path)
    if "/." in path:
        segments: list[str] = []
        for segment in path.split("/"):
            if segment != "..":
                segments += [segment] if segment != "." else []
            elif len(segments) > 1:  # the first one is before the first slash
                segments.pop()
        path = "/".join(segments)
    return path.rstrip("/")


def _canonical_escape(escape: re.Match[str]) -> str:
    if escape[1] is None:
        raise InvalidInput("worker_name", "has a % that does not begin an escape, such as %20")
    character = chr(int(escape[1], 16))
    return character if _UNRESERVED.match(character) else escape[0].upper()


def _canonical_host(host: str) -> str:
    """Return a host in its canonical form for a URL. Raises InvalidInput unless it is a host name or an IP address."""
    try:
        address = ip_address(host)
    except ValueError:
        # Resolvers read a name that ends in a number, such as 2130706433, as an IPv4 address.
        if not _HOST_NAME.match(host) or _NUMERIC_LABEL.match(host.rstrip(".").rpartition(".")[2]):
            raise InvalidInput("worker_name", "has a host that is neither a host name nor an IP address") from None
        return host.rstrip(".").lower()
    # str(address) is not used: since Python 3.13, it writes IPv4-mapped addresses differently.
    return f"[{inet_ntop(AF_INET6, address.packed)}]" if isinstance(address, IPv6Address) else str(address)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """The status that a worker reports (FastChat: `worker_get_status`).

    model_names: in the worker's order, without duplicates.
    speed: relative to the other workers. FastChat's workers report 1.
    queue_length: number of running and waiting requests.
    capacity: number of requests that the worker can run at once. None if it does not report a capacity.

    A controller below this one reports no models and speed 0 while it has no workers.

    Raises InvalidInput if a value is out of bounds.
    """

    model_names: tuple[str, ...]
    speed: float
    queue_length: int
    capacity: int | None = None

    def __post_init__(self) -> None:
        if len(self.model_names) > MAX_MODELS:
            raise InvalidInput(
                "model_names", f"has {len(self.model_names)} entries, but at most {MAX_MODELS} are allowed"
            )
        for name in self.model_names:
            if not is_model_name(name):
                raise InvalidInput("model_names", f"each name {_MODEL_NAME_RULE}")
        without_workers = not self.model_names and self.speed == 0
        if not without_workers and not MIN_SPEED <= self.speed <= MAX_SPEED:  # also rejects NaN
            raise InvalidInput("speed", f"must be a number from {MIN_SPEED:g} to {MAX_SPEED:g}")
        whole_queue_length(self.queue_length)
        if self.capacity is not None and not 1 <= self.capacity <= MAX_CAPACITY:
            raise InvalidInput("capacity", f"must be a whole number from 1 to {MAX_CAPACITY}, or be left out")
        object.__setattr__(self, "model_names", tuple(dict.fromkeys(self.model_names)))


def model_name(text: str) -> str:
    """Return the name of a model. Raises InvalidInput if no worker can register it."""
    if not is_model_name(text):
        raise InvalidInput("model", _MODEL_NAME_RULE)
    return text


def is_model_name(text: str) -> bool:
    """Return True if a worker can register a model of this name."""
    return 1 <= len(text) <= MAX_MODEL_NAME_LENGTH and not _NOT_IN_MODEL_NAMES.search(text)


def whole_queue_length(queue_length: float) -> int:
    """Return a queue length in whole requests, rounded up. Raises InvalidInput if it is out of bounds."""
    if not 0 <= queue_length <= MAX_QUEUE_LENGTH:  # also rejects NaN
        raise InvalidInput("queue_length", f"must be a number from 0 to {MAX_QUEUE_LENGTH}")
    return queue_length if type(queue_length) is int else math.ceil(queue_length)


@dataclass(frozen=True, slots=True)
class Registration:
    """A worker's request to be registered.

    check_heart_beat: False for a worker that sends no heartbeats. It is alive until it is removed.
    registered_by: name of the token that registered it. "" if it needed none.
    engine: None for a worker that speaks FastChat's protocol. An engine is alive for as long as it answers polls.
    request_id: identifies the request, so that a repetition after a lost answer is not a second registration.
    """

    name: str
    status: WorkerStatus
    check_heart_beat: bool
    multimodal: bool
    registered_by: str = ""
    engine: Engine | None = None
    request_id: str = field(default_factory=lambda: secrets.token_hex(12), compare=False)

    @property
    def indexed_models(self) -> tuple[str, ...]:
        """The names of its models in the indexes."""
        return _indexed(self.status.model_names, self.engine)


@dataclass(frozen=True, slots=True)
class Worker:
    """A registered, live worker in the registry.

    status: as registered, with two exceptions. status.queue_length is the estimated queue length now, and
        status.capacity is the capacity that dispatches use.
    registration: sequence number of the worker's latest registration. A new registration gets a new number.
    heartbeat_age: in seconds.
    expires_in: seconds until the heartbeat expires. None for a worker that sends no heartbeats.
    leased: number of active leases.
    draining: the worker gets no new requests.
    failing: why the worker is deprioritised: "request" or "polls". "" if it is not.
    polled: the worker has answered a status poll.
    reported: queue length in the worker's last report.
    booked: number of requests without a lease that were dispatched to the worker since that report.
    capacity_source: "reported", "configured", "learned" from an engine's load, or "" if the capacity is unknown.
    reported_capacity: the capacity that the worker reports. None if it reports none.
    registered_by, engine: as in Registration.
    own: how many of the requests in that report this cluster may have dispatched.
    own_work: request-seconds that the worker has spent on these since one of them finished.
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
    capacity_source: str = ""
    reported_capacity: int | None = None
    registered_by: str = ""
    engine: Engine | None = None
    own: int = field(default=0, compare=False)
    own_work: float = field(default=0.0, compare=False)

    @property
    def protocol(self) -> Protocol:
        """The protocol of the requests that the worker understands."""
        return Protocol.OPENAI if self.engine else Protocol.FASTCHAT

    @property
    def indexed_models(self) -> tuple[str, ...]:
        """The names of its models in the indexes."""
        return _indexed(self.status.model_names, self.engine)

    def as_registered(self, name: str = "") -> Registration:
        """Return the registration that makes this worker. name: another name for it."""
        status = replace(self.status, capacity=self.reported_capacity)  # the registration decides the capacity again
        return Registration(
            name or self.name, status, self.check_heart_beat, self.multimodal, self.registered_by, self.engine
        )

    @property
    def reports(self) -> bool:
        """True if the worker reports its queue: with heartbeats, or as the response to polls."""
        return self.check_heart_beat or self.polled

    @property
    def drained(self) -> bool:
        """True if the worker is draining and has finished its requests according to its reports."""
        return self.draining and not (self.reported or self.booked or self.leased)


def _indexed(models: tuple[str, ...], engine: Engine | None) -> tuple[str, ...]:
    return models if engine is None else tuple(indexed_name(model, Protocol.OPENAI) for model in models)


@dataclass(frozen=True, slots=True)
class WorkerStatusTotal:
    """The sum of several workers: like WorkerStatus, but without bounds. speed is 0 if there are no workers."""

    model_names: tuple[str, ...]
    speed: float
    queue_length: int
    capacity: int | None = None


def total_status(workers: Iterable[Worker]) -> WorkerStatusTotal:
    """Return the status of all workers as one, for a parent controller (FastChat: `Controller.worker_api_get_status`).

    The total has a capacity only if those of all workers are known. Otherwise, the number of slots is unknown.
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
    known = [capacity for capacity in capacities if capacity is not None]
    capacity = sum(known) if known and len(known) == len(capacities) else None
    return WorkerStatusTotal(tuple(sorted(models)), speed, queue_length, capacity)
