"""All settings in one object: flags, environment variables, defaults and checks."""

import re
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any, Final

from controller.domain.capacity import DefaultCapacities, check_capacity
from controller.domain.checkpoints import MAX_IN_FLIGHT_WINDOW
from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import InvalidInput, SettingsError
from controller.domain.lease import MAX_LEASE_TIME
from controller.domain.worker import MAX_CAPACITY, model_name, worker_name
from controller.security.access import AccessRules
from controller.security.forward_paths import ForwardPaths
from controller.security.networks import Networks
from controller.security.parent_addresses import ParentAddress, parse_parent
from controller.security.tokens import TOKEN_PLANES, Token, parse_file, parse_list
from controller.security.upstream_tokens import UpstreamTokens
from controller.security.worker_addresses import WorkerAddresses
from controller.store_url import StoreKind, StoreUrl, parse_store_url, read_password_file

_NAMESPACE: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
DEFAULT_DATA_DIR: Final = Path("controller-data")
_MAX_REDIS_TIMEOUT: Final = 60.0
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
    "idle_timeout",
)
_SECONDS: Final = (
    "register_timeout",
    "booking_delay",
    "poll_interval",
    "shutdown_delay",
    "shutdown_timeout",
    "head_timeout",
    "body_timeout",
    "send_timeout",
)
_LIMITS: Final = {
    "max_connections": 10**6,
    "max_forwards": 10**6,
    "max_body_memory": 10**6,
    "max_workers": 10**6,
    "max_leases": 10**8,
    "registration_rate": 10**6,
}
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")


def environment_variable(name: str) -> str:
    """Return our environment variable for a name."""
    return f"CONTROLLER_{name.upper()}"


def _setting(
    default: Any,
    text: str,
    *,
    also: Sequence[str] = (),
    choices: Sequence[str] = (),
    old_name: str | None = None,
    secret: bool = False,
    has_password: bool = False,
) -> Any:
    """Declare a setting.

    also: FastChat's environment variables for the same setting.
    old_name: a deprecated name. Its flag and environment variable still work, and `controller serve` logs a warning.
    secret: it has no flag, because all users of a machine can read command lines.
    has_password: the value may have a password in it.
    """
    if old_name:
        also = [*also, environment_variable(old_name)]
    return field(
        default=default,
        repr=not (secret or has_password),
        metadata={
            "help": text,
            "also": tuple(also),
            "choices": tuple(choices),
            "old_name": old_name,
            "secret": secret,
        },
    )


def _check_address(name: str, text: str) -> None:
    try:
        worker_name(text)
    except InvalidInput as error:
        raise SettingsError(f"--{name} must be an address such as http://top:21001: {error.problem}.") from error


def _read_capacities(text: str) -> dict[str, int]:
    """Return the capacities in the value of --capacity, by model. Raises SettingsError."""
    capacities: dict[str, int] = {}
    for part in text.split(",") if text else ():
        model, _, number = part.strip().rpartition("=")
        try:
            model_name(model)
            capacity = check_capacity(int(number))
        except (ValueError, InvalidInput) as error:
            raise SettingsError(
                f"--capacity must be MODEL=N, or several of these with commas, such as vicuna-7b=5,vicuna-13b=3. N is "
                f"from 1 to {MAX_CAPACITY}. This part is wrong: {part.strip()!r}."
            ) from error
        if model in capacities:
            raise SettingsError(f"--capacity has two values for the model {model!r}. Remove one of them.")
        capacities[model] = capacity
    return capacities


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of `controller serve`. Times are in seconds.

    Each field has the flag `--its-name` and the environment variable `CONTROLLER_ITS_NAME`. The command line is
    generated from these declarations. Raises SettingsError with a message that says what to change.
    """

    host: str = _setting(
        "localhost", "Address or name to listen on. :: means all addresses, 0.0.0.0 all IPv4 addresses."
    )
    port: int = _setting(21001, "Port to listen on. 0 picks a free one.")
    dispatch_method: DispatchMethod = _setting(
        DispatchMethod.SHORTEST_QUEUE,
        "How a worker is chosen: by the lowest queue_length / speed, or at random with odds proportional to speed.",
        choices=tuple(DispatchMethod),
    )
    ssl: bool = _setting(False, "Serve HTTPS. Needs --ssl-keyfile and --ssl-certfile.")
    ssl_keyfile: Path | None = _setting(None, "The private key for --ssl.", also=["SSL_KEYFILE"])
    ssl_certfile: Path | None = _setting(None, "The certificate for --ssl.", also=["SSL_CERTFILE"])
    redis_url: str | None = _setting(
        None,
        "The Redis that holds the registry: redis://host:6379/0, rediss://..., unix:///path, "
        "redis+sentinel://h1,h2,h3/master or redis+cluster://h1,h2 (rediss+... for TLS). The default, embedded://, "
        "starts a Valkey server with its data in --data-dir. If the URL has a password, use the environment variable.",
        has_password=True,
    )
    redis_password_file: Path | None = _setting(
        None,
        "File with the password for --redis-url, which keeps it out of command lines and environments. Each new "
        "connection reads the file, so a changed password needs no restart.",
    )
    namespace: str = _setting(
        "controller", "Prefix of all keys. Clusters that share one Redis need different namespaces."
    )
    heartbeat_expiration: float = _setting(
        90.0,
        "Time after its last heartbeat at which a worker expires.",
        also=["FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION"],
    )
    replicas: int = _setting(1, "Number of identical processes that serve the port.")
    data_dir: Path | None = _setting(None, f"Data directory of the embedded store.  [default: ./{DEFAULT_DATA_DIR}]")
    worker_timeout: float = _setting(
        100.0,
        "Longest time that a worker may send nothing, before or during its response to a forwarded request.",
        also=["FASTCHAT_WORKER_API_TIMEOUT"],
    )
    forward_tries: int = _setting(
        2,
        "Largest number of workers that a forwarded request is tried on. It is retried if its worker returns a 5xx, or "
        "fails before the first whole frame of a stream or the first part of another body. A request that crashes its "
        "worker can crash this many.",
    )
    forward_paths: str = _setting(
        "default",
        "Paths of POST requests that are forwarded to workers, besides those of FastChat's workers: exact ones, or "
        "prefixes such as /v1/audio/*. Separate several with commas. The word default stands for the usual paths of "
        "inference, such as /v1/chat/completions. Paths for the management of engines are never forwarded.",
    )
    worker_allow: str | None = _setting(
        None,
        "Workers that may register and be connected to: host names such as *.gpu.internal, IP addresses or networks, "
        "each with an optional port or range of ports, such as 10.0.0.0/8:21002-21100. Separate several with commas. "
        "The default is all, except link-local and cloud metadata addresses, which always have to be named.",
    )
    upstream_tokens_file: Path | None = _setting(
        None,
        "File with tokens for workers. Each line has the URL of a worker or a pattern as in --worker-allow, and the "
        "token that is sent to these workers as Authorization: Bearer. A change needs no restart.",
    )
    probe_timeout: float = _setting(5.0, "Time limit for a worker to return its status.")
    booking_decay: str = _setting(
        "on",
        "Whether the weight of a request without a lease decays with its age. With off, the request counts fully until "
        "the worker's next report, as in FastChat, and --booking-delay is 0.",
        choices=("on", "off"),
    )
    booking_delay: float = _setting(
        0.2,
        "Assumed delay between a dispatch and its arrival at the worker (max 0.35 s). Reports do not replace bookings "
        "younger than this.",
    )
    lease_time: float = _setting(600.0, "Default lease duration, used if the client requests none.")
    poll_interval: float = _setting(
        5.0, "How often each worker is polled for its queue length, by one of the replicas. 0 turns polling off."
    )
    default_capacity: int = _setting(
        0,
        "How many requests a worker runs at once, if neither the worker nor --capacity says so. 0 means unknown. "
        "FastChat's workers do not report their --limit-worker-concurrency, which is 5 by default.",
    )
    capacity: str | None = _setting(
        None,
        "How many requests each worker of a model runs at once, if the worker does not report it: MODEL=N. Separate "
        "several with commas.",
    )
    parent: str | None = _setting(
        None,
        "Address of a parent controller, ours or FastChat's, at which this cluster registers as one worker: "
        "http://host:port. Separate several with commas. If the parent requires a token, write "
        "http://name:token@host:port, and use the environment variable.",
        has_password=True,
    )
    advertise: str | None = _setting(
        None,
        "Address at which --parent and, with --by-way, clients reach this cluster, usually of its load balancer: "
        "http://host:port.",
    )
    by_way: bool = _setting(
        False,
        "Give clients the address --advertise instead of a worker's, so that their requests pass through the "
        "controller. Then each request is counted from its start to its end. Otherwise clients send their requests to "
        "the workers, and their load is estimated.",
    )
    worker_tokens: str | None = _setting(
        None,
        "Tokens with which workers may register and send heartbeats: name=token. Separate several with commas. If any "
        "token or network is set, requests without the right to a route are refused.",
        secret=True,
    )
    client_tokens: str | None = _setting(
        None, "Tokens with which clients may request workers and forward requests: name=token, as above.", secret=True
    )
    admin_tokens: str | None = _setting(
        None, "Tokens with which everything is allowed: name=token, as above.", secret=True
    )
    tokens_file: Path | None = _setting(
        None,
        "File with more tokens, one per line: worker|client|admin NAME TOKEN [workers=PATTERN,...] "
        "[models=PATTERN,...]. With patterns, a worker token is only valid for these workers and models. A changed "
        "file is read again.",
    )
    worker_networks: str | None = _setting(
        None, "Networks from which workers may register without a token, such as 10.0.0.0/8. Separate with commas."
    )
    client_networks: str | None = _setting(None, "The same for clients, which request workers and forward requests.")
    admin_networks: str | None = _setting(None, "The same for operators, who may do everything.")
    satisfy: str = _setting(
        "any",
        "Whether a token or a listed network is enough (any), or callers need both (all).",
        choices=("any", "all"),
    )
    trusted_proxies: str | None = _setting(
        None,
        "Networks of load balancers whose header X-Forwarded-For is believed. Without it, their own address counts.",
    )
    insecure: bool = _setting(
        False,
        "Serve other machines without tokens and networks. Everybody who reaches the port may then do everything.",
    )
    published_host: str | None = _setting(
        None,
        "Address at which a container engine or a load balancer publishes the port, such as 127.0.0.1:21001, if other "
        "machines reach it by no other way. If it is a loopback address, --insecure is not needed.",
    )
    parent_interval: float = _setting(
        45.0,
        "How often one of the replicas sends a heartbeat to each --parent.",
        also=["FASTCHAT_WORKER_HEART_BEAT_INTERVAL"],
    )
    redis_timeout: float = _setting(
        0.25,
        "Time limit for a call to Redis. If it is exceeded, dispatching continues from a snapshot until Redis is back.",
    )
    snapshot_interval: float = _setting(
        1.0, "How often the snapshot is taken. With thousands of workers it is taken less often."
    )
    register_timeout: float = _setting(
        90.0,
        "How long a registration waits for Redis to come back before it fails with 503. The old name is "
        "--register-patience.",
        old_name="register_patience",
    )
    sweep_interval: float = _setting(10.0, "How often expired workers are purged from the indexes.")
    shutdown_delay: float = _setting(
        2.0,
        "How long to keep serving after SIGTERM while /readyz returns 503, so that load balancers can remove the "
        "replica.",
    )
    shutdown_timeout: float = _setting(
        30.0, "Time limit for running requests after --shutdown-delay. Then they are ended."
    )
    head_timeout: float = _setting(
        30.0, "Time limit for a client to send the head of a request. 0 turns the limit off."
    )
    body_timeout: float = _setting(
        120.0, "Time limit for a client to send the body of a request. 0 turns the limit off."
    )
    send_timeout: float = _setting(
        60.0, "Longest time that a client may read nothing of a response that waits for it. 0 turns the limit off."
    )
    idle_timeout: float = _setting(75.0, "How long an idle connection is kept. Longer than clients keep it is best.")
    max_connections: int = _setting(
        10_000, "Largest number of connections to each replica. Others get a 503. 0 turns the limit off."
    )
    max_forwards: int = _setting(
        2_000, "Largest number of requests that each replica forwards at once. Others get a 503. 0 turns the limit off."
    )
    max_body_memory: int = _setting(
        512,
        "Memory of each replica for bodies that it receives or holds for a worker, in MiB. Requests with more than 16 "
        "KiB get a 503 if it is used up. 0 turns the limit off.",
    )
    max_workers: int = _setting(
        10_000,
        "Largest number of live workers. Registrations of others get a 429. All replicas need the same number. 0 turns "
        "the limit off.",
    )
    max_leases: int = _setting(
        100_000,
        "Largest number of active leases. Requests for others get a 429. All replicas need the same number. 0 turns "
        "the limit off.",
    )
    registration_rate: float = _setting(
        200.0,
        "Registrations per second that a replica accepts from one address. Those beyond it are delayed, and get a 429 "
        "if the delay would exceed --register-timeout. 0 turns the limit off.",
    )
    log_level: str = _setting("info", "Lowest level that is logged to standard error.", choices=_LOG_LEVELS)

    @property
    def parents(self) -> tuple[str, ...]:
        """Addresses of the parent controllers, without credentials."""
        return tuple(parent.address for parent in self.parent_addresses)

    @property
    def parent_addresses(self) -> tuple[ParentAddress, ...]:
        """The parent controllers, with the credentials for them. Raises SettingsError if one is wrong."""
        return tuple(parse_parent(parent) for parent in self.parent.split(",")) if self.parent else ()

    @property
    def default_capacities(self) -> DefaultCapacities:
        """The capacities of --capacity and --default-capacity. Raises SettingsError if they are wrong."""
        return DefaultCapacities(_read_capacities(self.capacity or ""), self.default_capacity or None)

    @property
    def access_rules(self) -> AccessRules:
        """Who may do what. Raises SettingsError if a token or a network is wrong."""
        tokens: list[Token] = []
        for plane in TOKEN_PLANES:
            try:
                tokens += parse_list(getattr(self, f"{plane}_tokens") or "", plane)
            except InvalidInput as error:
                variable = environment_variable(f"{plane}_tokens")
                raise SettingsError(f"{variable} is wrong: {error}. No token is shown here.") from error
        if len({token.name for token in tokens}) < len(tokens) or len({token.digest for token in tokens}) < len(tokens):
            raise SettingsError("Two tokens have the same name or the same secret. Each needs its own.")
        networks = {plane: self._networks(f"{plane}_networks") for plane in TOKEN_PLANES}
        networks = {plane: listed for plane, listed in networks.items() if listed}
        return AccessRules(
            tokens,
            networks,
            needs_both=self.satisfy == "all",
            proxies=self._networks("trusted_proxies"),
            is_closed=bool(tokens or networks or self.tokens_file),
        )

    def _networks(self, name: str) -> Networks:
        try:
            return Networks(getattr(self, name) or "")
        except InvalidInput as error:
            message = f"{flag(name)} must be networks such as 10.0.0.0/8,fd00::/8: {error.problem}."
            raise SettingsError(message) from error

    def _check_access(self) -> None:
        if self.satisfy not in ("any", "all"):
            raise SettingsError(f"--satisfy must be any or all, not {self.satisfy}.")
        if self.tokens_file is not None:
            try:
                parse_file(self.tokens_file.read_text())
            except (OSError, UnicodeDecodeError, InvalidInput) as error:
                raise SettingsError(f"--tokens-file {self.tokens_file} cannot be used: {error}") from error
        _ = self.access_rules

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
        if self.booking_delay > MAX_IN_FLIGHT_WINDOW:
            raise SettingsError(
                f"--booking-delay must be at most {MAX_IN_FLIGHT_WINDOW:g} s, not {self.booking_delay}."
            )
        if 0 < self.poll_interval < _LEAST_POLL_INTERVAL:
            raise SettingsError(
                f"--poll-interval must be 0, for never, or at least {_LEAST_POLL_INTERVAL:g} s, not "
                f"{self.poll_interval}."
            )
        for name in _SECONDS:
            if not 0 <= getattr(self, name) <= 10**7:
                raise SettingsError(f"{flag(name)} must be 0 or more seconds, not {getattr(self, name)}.")
        for name, largest in _LIMITS.items():
            if not 0 <= getattr(self, name) <= largest:
                raise SettingsError(
                    f"{flag(name)} must be 0, for no limit, or at most {largest}, not {getattr(self, name)}."
                )
        if not 0 <= self.default_capacity <= MAX_CAPACITY:
            raise SettingsError(
                f"--default-capacity must be 0, for unknown, or at most {MAX_CAPACITY}, not {self.default_capacity}."
            )
        _ = self.default_capacities
        if self.parent and not self.advertise:
            raise SettingsError("--parent needs --advertise: the address at which the parent reaches this cluster.")
        if self.by_way and not self.advertise:
            raise SettingsError("--by-way needs --advertise: the address at which clients reach this cluster.")
        if self.advertise and not (self.parent or self.by_way):
            raise SettingsError("--advertise needs --parent or --by-way, because nothing else uses the address.")
        _ = self.parent_addresses
        if self.advertise:
            _check_address("advertise", self.advertise)
            if worker_name(self.advertise) in self.parents:
                raise SettingsError(
                    "--parent and --advertise are the same address. A cluster cannot register at itself: change one."
                )
        # These raise SettingsError if a value is wrong.
        WorkerAddresses(self.worker_allow)
        ForwardPaths(self.forward_paths)
        UpstreamTokens(self.upstream_tokens_file)
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"--port must be from 0 to 65535, not {self.port}.")
        if not 1 <= self.replicas <= 256:
            raise SettingsError(f"--replicas must be from 1 to 256, not {self.replicas}.")
        if not 1 <= self.forward_tries <= _MAX_FORWARD_TRIES:
            raise SettingsError(
                f"--forward-tries must be from 1 to {_MAX_FORWARD_TRIES} workers, not {self.forward_tries}."
            )
        if not _NAMESPACE.match(self.namespace):
            raise SettingsError(
                "--namespace must have 1 to 64 characters: letters, digits, dots, colons, dashes and underscores."
            )
        if self.log_level not in _LOG_LEVELS:
            raise SettingsError(f"--log-level must be one of {', '.join(_LOG_LEVELS)}.")
        self._check_access()
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
                raise SettingsError(f"{flag(name)} is not a file: {path}. --ssl needs it.")
        try:
            context = SSLContext(PROTOCOL_TLS_SERVER)
            context.load_cert_chain(str(self.ssl_certfile), str(self.ssl_keyfile), password=_no_password)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"--ssl cannot use --ssl-certfile {self.ssl_certfile} with --ssl-keyfile {self.ssl_keyfile}: {error}. "
                "Both must be PEM files of one pair, and the key must have no password."
            ) from error

    def _check_store(self) -> None:
        if self.redis_url is not None and self.data_dir is not None:
            raise SettingsError(
                "--redis-url and --data-dir exclude each other: --data-dir is for the embedded store, which is not "
                "started if --redis-url is set. Remove one of the two."
            )
        self.store_url()

    def store_url(self) -> StoreUrl:
        """Return the store that the settings name. Raises SettingsError if the URL is wrong."""
        store = parse_store_url("embedded://" if self.redis_url is None else self.redis_url)
        if self.redis_password_file is None:
            return store
        if store.kind is StoreKind.EMBEDDED or store.password is not None:
            raise SettingsError(
                "--redis-password-file needs a --redis-url that names a server and has no password of its own."
            )
        read_password_file(self.redis_password_file)  # report a wrong path at the start, and not as an outage of Redis
        return replace(store, password_file=self.redis_password_file)


def _no_password() -> str:
    raise ValueError("the key has a password")


def flag(name: str) -> str:
    """Return the command line flag of a setting."""
    return "--" + name.replace("_", "-")


def environment_variables(setting: "Field[Any]") -> list[str]:
    """Return the environment variables of a setting, in order of precedence."""
    return [environment_variable(setting.name), *setting.metadata["also"]]


def all_settings() -> tuple["Field[Any]", ...]:
    """Return the fields of Settings. Their metadata has `help`, `also`, `choices` and `old_name`."""
    return fields(Settings)
