"""Settings of the server: its address, its certificate and its processes."""

from dataclasses import dataclass
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import ClassVar, Final

from controller.domain.errors import SettingsError
from controller.settings import checks
from controller.settings.declaration import Scope, flag, setting

_LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_LOG_FORMATS: Final = ("auto", "text", "json")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The addresses and the behaviour of the HTTP server. Times are in seconds."""

    title: ClassVar = "Server"

    host: str = setting(
        "localhost",
        "Address or name to listen on. :: means all addresses, 0.0.0.0 all IPv4 addresses.",
        scope=Scope.MACHINE,
    )
    port: int = setting(
        21001,
        "Port to listen on. 0 picks a free one.",
        scope=Scope.MACHINE,
    )
    replicas: int = setting(
        1,
        "Number of identical processes that serve the port.",
        scope=Scope.PROCESS,
    )
    ssl: bool = setting(
        False,
        "Serve HTTPS. Needs --ssl-keyfile and --ssl-certfile.",
        scope=Scope.PROCESS,
    )
    ssl_keyfile: Path | None = setting(
        None,
        "The private key for --ssl.",
        also=["SSL_KEYFILE"],
        scope=Scope.MACHINE,
    )
    ssl_certfile: Path | None = setting(
        None,
        "The certificate for --ssl.",
        also=["SSL_CERTFILE"],
        scope=Scope.MACHINE,
    )
    shutdown_delay: float = setting(
        2.0,
        "How long to keep serving after SIGTERM while /readyz returns 503, so that load balancers can remove the "
        "replica.",
        scope=Scope.PROCESS,
    )
    shutdown_timeout: float = setting(
        30.0,
        "Time limit for running requests after --shutdown-delay. Then they are ended.",
        scope=Scope.PROCESS,
    )
    target_utilization: float = setting(
        0.8,
        "Requests per slot that the metric controller_desired_workers aims at, for autoscalers.",
        unit="",
    )
    worker_metrics: str = setting(
        "off",
        "Whether /metrics has the queue length, capacity and heartbeat of each of the first 1,000 workers.",
        choices=("on", "off"),
        scope=Scope.PROCESS,
    )
    log_level: str = setting(
        "info",
        "Lowest level that is logged to standard error.",
        choices=_LOG_LEVELS,
        scope=Scope.MACHINE,
    )
    log_format: str = setting(
        "auto",
        "Log format: lines of text, or one JSON object a line. auto: text on a terminal, otherwise JSON.",
        choices=_LOG_FORMATS,
        scope=Scope.PROCESS,
    )
    access_log: bool = setting(
        False,
        "Log a line for each request, which costs about half as much as a dispatch.",
        scope=Scope.PROCESS,
    )
    tracing: bool = setting(
        False,
        "Send traces of the requests of clients to a collector, by OTLP. The variables OTEL_... of OpenTelemetry "
        "configure it. Needs `pip install 'controller-cluster[otel]'`.",
        scope=Scope.PROCESS,
    )

    def check_server(self) -> None:
        """Raise SettingsError if a value is wrong."""
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"--port must be from 0 to 65535, not {self.port}.")
        if not 0 < self.target_utilization <= 100:
            raise SettingsError(f"--target-utilization must be above 0 and at most 100, not {self.target_utilization}.")
        if not 1 <= self.replicas <= 256:
            raise SettingsError(f"--replicas must be from 1 to 256, not {self.replicas}.")
        checks.seconds(self, "shutdown_delay", "shutdown_timeout")
        checks.one_of(self, "log_level", _LOG_LEVELS)
        checks.one_of(self, "log_format", _LOG_FORMATS)
        if self.ssl:
            self._check_certificate()

    def _check_certificate(self) -> None:
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


def _no_password() -> str:
    raise ValueError("the key has a password")
