"""Every setting, in one object: its flag, its environment variables, its default and what it must satisfy."""

import re
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any, Final

from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import InvalidInput, SettingsError
from controller.domain.load import MARK_MS, MAX_LEASE_TIME, MAX_MARKS
from controller.domain.worker import worker_name
from controller.store_url import StoreKind, StoreUrl, parse_store_url, read_password_file

_NAMESPACE: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
DEFAULT_DATA_DIR: Final = Path("controller-data")
_MAX_REDIS_TIMEOUT: Final = 60.0
_MAX_BOOKING_DELAY: Final = (MAX_MARKS - 1) * MARK_MS / 1000  # of what is older, there are no marks
_MAX_FORWARD_TRIES: Final = 16
_LEAST_POLL_INTERVAL: Final = 0.05
_POSITIVE: Final = (
    "heartbeat_expiration",
    "worker_timeout",
    "probe_timeout",
    "redis_timeout",
    "snapshot_interval",
    "sweep_interval",
    "parent_interval",
)
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")


def _setting(default: Any, text: str, *, also: Sequence[str] = (), choices: Sequence[str] = ()) -> Any:
    return field(default=default, metadata={"help": text, "also": tuple(also), "choices": tuple(choices)})


def _check_address(name: str, text: str) -> None:
    try:
        worker_name(text)
    except InvalidInput as error:
        raise SettingsError(f"--{name} must be an address such as http://top:21001: {error.problem}.") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of `controller serve`. Times are in seconds.

    Each field is the flag `--its-name` and the environment variable `CONTROLLER_ITS_NAME`; the command line reads
    both from here. Raises SettingsError, in one sentence that says what to change.
    """

    host: str = _setting(
        "localhost", "Address or name to listen on. :: stands for all addresses, 0.0.0.0 for those of IPv4."
    )
    port: int = _setting(21001, "Port to listen on. 0 picks a free one.")
    dispatch_method: DispatchMethod = _setting(
        DispatchMethod.SHORTEST_QUEUE,
        "How a worker is chosen: the least queue_length / speed, or at random in proportion to speed.",
        choices=tuple(DispatchMethod),
    )
    ssl: bool = _setting(False, "Serve HTTPS. Needs a key file and a certificate file.")
    ssl_keyfile: Path | None = _setting(None, "The private key for --ssl.", also=["SSL_KEYFILE"])
    ssl_certfile: Path | None = _setting(None, "The certificate for --ssl.", also=["SSL_CERTFILE"])
    redis_url: str | None = _setting(
        None,
        "The Redis that holds the registry: redis://host:6379/0, rediss://..., unix:///path, "
        "redis+sentinel://h1,h2,h3/master, redis+cluster://h1,h2 (rediss+... for TLS); or embedded://, which is the "
        "default: a server of our own, under --data-dir. With a password in it, give it as the variable.",
    )
    redis_password_file: Path | None = _setting(
        None,
        "A file with the password for --redis-url, so that it stands in no command line and no environment. It is read "
        "for each connection, so a new password in it needs no restart.",
    )
    namespace: str = _setting("controller", "Separates clusters that share one Redis.")
    heartbeat_expiration: float = _setting(
        90.0,
        "A worker that has not sent a heartbeat for so long is dead.",
        also=["FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION"],
    )
    replicas: int = _setting(1, "How many identical processes answer on the port.")
    data_dir: Path | None = _setting(None, f"Where the embedded store keeps its data.  [default: ./{DEFAULT_DATA_DIR}]")
    worker_timeout: float = _setting(
        100.0,
        "The longest silence of a worker before or within its answer to a forwarded request.",
        also=["FASTCHAT_WORKER_API_TIMEOUT"],
    )
    forward_tries: int = _setting(
        2,
        "How many workers a forwarded request may be tried on, as long as they fail before their answer begins. "
        "A request that kills its worker kills as many.",
    )
    probe_timeout: float = _setting(5.0, "How long a worker may take to tell its status.")
    booking_decay: str = _setting(
        "on",
        "Whether a booking without a lease counts for less as it ages. off is FastChat's arithmetic: it counts until "
        "the worker's next report, and --booking-delay is 0.",
        choices=("on", "off"),
    )
    booking_delay: float = _setting(
        0.2,
        "How long a request is under way to its worker, at most 0.35: younger bookings are not in what it reports yet.",
    )
    lease_time: float = _setting(600.0, "After how long a lease ends by itself, where its client names no time.")
    poll_interval: float = _setting(
        5.0, "How often a worker is asked for its queue length, by one of the replicas. 0 for never."
    )
    parent: str | None = _setting(
        None,
        "A controller above this cluster, which joins it as one worker; several with commas between them. "
        "http://host:port, of ours or FastChat's.",
    )
    advertise: str | None = _setting(
        None, "The address by which --parent reaches this cluster: that of its load balancer. http://host:port."
    )
    parent_interval: float = _setting(
        45.0,
        "How often the cluster, by one of its replicas, sends a heartbeat to each --parent.",
        also=["FASTCHAT_WORKER_HEART_BEAT_INTERVAL"],
    )
    redis_timeout: float = _setting(
        0.25, "How long a call to the store may take; then dispatch goes on from a snapshot, until the store is back."
    )
    snapshot_interval: float = _setting(1.0, "How often the snapshot is taken; with thousands of workers, less often.")
    register_patience: float = _setting(
        90.0, "How long a registration waits for the store to come back before it is answered 503."
    )
    sweep_interval: float = _setting(10.0, "How often workers whose heartbeat lapsed are tidied away.")
    shutdown_delay: float = _setting(
        2.0, "How long SIGTERM lets a replica serve on while /readyz says 503, for load balancers to see it."
    )
    shutdown_timeout: float = _setting(
        30.0, "How long requests and streams may then take to end, before they are broken off."
    )
    log_level: str = _setting("info", "How much is logged to standard error.", choices=_LOG_LEVELS)

    @property
    def parents(self) -> tuple[str, ...]:
        """The addresses of the controllers above this cluster."""
        return tuple(worker_name(parent) for parent in self.parent.split(",")) if self.parent else ()

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not 0.001 <= getattr(self, name) <= 10**7:
                raise SettingsError(f"{flag(name)} must be a positive number of seconds, not {getattr(self, name)}.")
        if self.redis_timeout > _MAX_REDIS_TIMEOUT:
            raise SettingsError(f"--redis-timeout must be at most {_MAX_REDIS_TIMEOUT:g} s, not {self.redis_timeout}.")
        if not 0.001 <= self.lease_time <= MAX_LEASE_TIME:
            raise SettingsError(f"--lease-time must be from 0.001 to {MAX_LEASE_TIME:g} s, not {self.lease_time}.")
        if self.booking_decay not in ("on", "off"):
            raise SettingsError(f"--booking-decay must be on or off, not {self.booking_decay}.")
        if self.booking_delay > _MAX_BOOKING_DELAY:
            raise SettingsError(f"--booking-delay must be at most {_MAX_BOOKING_DELAY:g} s, not {self.booking_delay}.")
        if 0 < self.poll_interval < _LEAST_POLL_INTERVAL:
            raise SettingsError(
                f"--poll-interval must be 0, for never, or at least {_LEAST_POLL_INTERVAL:g} s, not "
                f"{self.poll_interval}."
            )
        for name in ("register_patience", "booking_delay", "poll_interval", "shutdown_delay", "shutdown_timeout"):
            if not 0 <= getattr(self, name) <= 10**7:
                raise SettingsError(f"{flag(name)} must be 0 or more seconds, not {getattr(self, name)}.")
        if bool(self.parent) != bool(self.advertise):
            raise SettingsError("--parent and --advertise go together: where to join, and under which address.")
        for parent in self.parent.split(",") if self.parent else ():
            _check_address("parent", parent)
        if self.advertise:
            _check_address("advertise", self.advertise)
            if worker_name(self.advertise) in self.parents:
                raise SettingsError("--parent and --advertise are the same: a cluster cannot join itself.")
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"--port must be from 0 to 65535, not {self.port}.")
        if not 1 <= self.replicas <= 256:
            raise SettingsError(f"--replicas must be from 1 to 256, not {self.replicas}.")
        if not 1 <= self.forward_tries <= _MAX_FORWARD_TRIES:
            raise SettingsError(
                f"--forward-tries must be from 1 to {_MAX_FORWARD_TRIES} workers, not {self.forward_tries}."
            )
        if not _NAMESPACE.match(self.namespace):
            raise SettingsError("--namespace takes 1 to 64 letters, digits, dots, colons, dashes and underscores.")
        if self.log_level not in _LOG_LEVELS:
            raise SettingsError(f"--log-level must be one of {', '.join(_LOG_LEVELS)}.")
        self._check_ssl()
        self._check_store()

    def _check_ssl(self) -> None:
        if not self.ssl:
            return
        for name in ("ssl_keyfile", "ssl_certfile"):
            path = getattr(self, name)
            if path is None:
                raise SettingsError(f"--ssl needs {flag(name)} (or the environment variable {name.upper()}).")
            if not path.is_file():
                raise SettingsError(f"{flag(name)} names no file: {path}. --ssl cannot work without it.")
        try:
            context = SSLContext(PROTOCOL_TLS_SERVER)
            context.load_cert_chain(str(self.ssl_certfile), str(self.ssl_keyfile), password=_no_password)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"--ssl cannot use --ssl-certfile {self.ssl_certfile} with --ssl-keyfile {self.ssl_keyfile}: {error}. "
                "Both must be PEM files that belong together, the key without a password."
            ) from error

    def _check_store(self) -> None:
        if self.redis_url is not None and self.data_dir is not None:
            raise SettingsError(
                "--redis-url and --data-dir exclude each other: a data directory is for the embedded store, which is "
                "not started when a Redis is named. Drop one of the two."
            )
        self.store_url()

    def store_url(self) -> StoreUrl:
        """Return the store that the settings name. Raises SettingsError if it cannot be one."""
        store = parse_store_url("embedded://" if self.redis_url is None else self.redis_url)
        if self.redis_password_file is None:
            return store
        if store.kind is StoreKind.EMBEDDED or store.password is not None:
            raise SettingsError(
                "--redis-password-file goes with a --redis-url that names a server and has no password in it itself."
            )
        read_password_file(self.redis_password_file)  # a wrong path is reported at the start, not as an outage
        return replace(store, password_file=self.redis_password_file)


def _no_password() -> str:
    raise ValueError("the key has a password")


def flag(name: str) -> str:
    """The command line flag of a setting."""
    return "--" + name.replace("_", "-")


def environment_variables(setting: "Field[Any]") -> list[str]:
    """The environment variables of a setting, the one that wins first."""
    return [f"CONTROLLER_{setting.name.upper()}", *setting.metadata["also"]]


def all_settings() -> tuple["Field[Any]", ...]:
    """The fields of Settings, each with `help`, `also` and `choices` in its metadata."""
    return fields(Settings)
