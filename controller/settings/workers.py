"""Settings of the workers: which may register, when they expire, and what is forwarded to them."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import urlsplit

from controller.domain.errors import InvalidInput, SettingsError
from controller.domain.worker import worker_name
from controller.security.forward_paths import ForwardPaths
from controller.security.upstream_tokens import UpstreamTokens
from controller.security.worker_addresses import WorkerAddresses
from controller.settings import checks
from controller.settings.declaration import Scope, setting

_MAX_FORWARD_TRIES: Final = 16
_LEAST_POLL_INTERVAL: Final = 0.05
_HTTP_PORT: Final = 80


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Workers, and the requests that are forwarded to them. Times are in seconds."""

    title: ClassVar = "Workers"

    heartbeat_expiration: float = setting(
        90.0,
        "Time after its last heartbeat at which a worker expires.",
        also=["FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION"],
    )
    poll_interval: float = setting(
        5.0, "How often each worker is polled for its queue length, by one of the replicas. 0 turns polling off."
    )
    engine_poll_interval: float = setting(
        1.0, "How often each registered engine is polled for its state and load, by one of the replicas."
    )
    engine_expiration: float = setting(
        10.0,
        "Time after its last answer at which an unresponsive engine expires. Must be longer than "
        "--engine-poll-interval.",
    )
    workers_file: Path | None = setting(
        None,
        "YAML file that lists engines. A changed file is read again: new engines are registered, and engines that it "
        "does not list any more drain and are removed.",
        scope=Scope.PROCESS,
    )
    workers_dns: str | None = setting(
        None,
        "Names whose addresses are engines, each with an optional port, such as vllm.default.svc:8000. The default "
        "port is 80. Separate several with commas. They are looked up every 5 s. If an address leaves its name, the "
        "engine at it drains and is removed.",
        scope=Scope.PROCESS,
    )
    probe_timeout: float = setting(5.0, "Time limit for a worker to return its status.")
    worker_timeout: float = setting(
        100.0,
        "Longest time that a worker may send nothing, before or during its response to a forwarded request.",
        also=["FASTCHAT_WORKER_API_TIMEOUT"],
    )
    connect_timeout: float = setting(
        2.0,
        "Time limit for the connection of a forwarded request to its worker, with the lookup of the host name. "
        "--worker-timeout limits it, too.",
    )
    first_byte_timeout: float = setting(
        0.0,
        "Longest time that an engine may take until the first byte of its response. Then another engine is tried. 0 "
        "turns the limit off. It is off by default, because busy engines keep requests waiting. --worker-timeout "
        "limits the time between two parts of the response.",
    )
    worker_allow: str | None = setting(
        None,
        "Workers that may register and be connected to: host names such as *.gpu.internal, IP addresses or networks, "
        "each with an optional port or range of ports, such as 10.0.0.0/8:21002-21100. Separate several with commas. "
        "The default is all, except link-local and cloud metadata addresses, which always have to be named.",
    )
    upstream_tokens_file: Path | None = setting(
        None,
        "File with tokens for workers. Each line has the URL of a worker or a pattern as in --worker-allow, and the "
        "token that is sent to these workers as Authorization: Bearer. A change needs no restart.",
        scope=Scope.PROCESS,
    )
    forward_paths: str = setting(
        "default",
        "Paths of POST requests that are forwarded to workers, besides those of FastChat's workers: exact ones, or "
        "prefixes such as /v1/audio/*. Separate several with commas. The word default stands for the usual paths of "
        "inference, such as /v1/chat/completions. Paths for the management of engines are never forwarded.",
    )
    forward_tries: int = setting(
        2,
        "Largest number of workers that a forwarded request is tried on, for all names of a route together. It is "
        "retried if its worker returns a 5xx, or fails before the first whole frame of a stream or the first part of "
        "another body. A request that crashes its worker can crash this many.",
    )

    retry_budget: float = setting(
        0.2,
        "Largest share of retries in the requests to engines that a replica forwards in 10 s. Besides these, all "
        "replicas together may retry 10 requests in 10 s.",
        unit="",
    )

    def check_workers(self) -> None:
        """Raise SettingsError if a value is wrong."""
        checks.positive_seconds(self, "heartbeat_expiration", "worker_timeout", "probe_timeout", "connect_timeout")
        checks.seconds(self, "poll_interval", "first_byte_timeout")
        if not 0 <= self.retry_budget <= 1:
            raise SettingsError(f"--retry-budget must be a share from 0 to 1, not {self.retry_budget}.")
        if 0 < self.poll_interval < _LEAST_POLL_INTERVAL:
            raise SettingsError(
                f"--poll-interval must be 0, for never, or at least {_LEAST_POLL_INTERVAL:g} s, not "
                f"{self.poll_interval}."
            )
        checks.positive_seconds(self, "engine_poll_interval", "engine_expiration")
        if self.engine_poll_interval < _LEAST_POLL_INTERVAL or self.engine_expiration < 2 * self.engine_poll_interval:
            raise SettingsError(
                f"--engine-poll-interval must be at least {_LEAST_POLL_INTERVAL:g} s, and --engine-expiration at least "
                f"twice as long, not {self.engine_poll_interval} s and {self.engine_expiration} s."
            )
        if not 1 <= self.forward_tries <= _MAX_FORWARD_TRIES:
            raise SettingsError(
                f"--forward-tries must be from 1 to {_MAX_FORWARD_TRIES} workers, not {self.forward_tries}."
            )
        # These raise SettingsError if a value is wrong.
        _ = self.dns_names
        if self.workers_file is not None:
            from controller.settings.workers_file import read_workers_file  # imported late, so that --help stays fast

            read_workers_file(self.workers_file)
        WorkerAddresses(self.worker_allow)
        ForwardPaths(self.forward_paths)
        UpstreamTokens(self.upstream_tokens_file)

    @property
    def dns_names(self) -> tuple[tuple[str, int], ...]:
        """The names and ports of --workers-dns. Raises SettingsError."""
        if self.workers_dns is None:
            return ()
        return tuple(_name_and_port(part.strip()) for part in self.workers_dns.split(","))


def _name_and_port(part: str) -> tuple[str, int]:
    try:
        url = urlsplit(worker_name(f"http://{part}"))
        problem = "must not have a path" if url.path else ""
    except InvalidInput as error:
        problem = error.problem
    if problem:
        raise SettingsError(
            f"--workers-dns must have names such as vllm.default.svc:8000. The name {part!r} {problem}."
        )
    return str(url.hostname), url.port or _HTTP_PORT
