"""Runs `controller serve`: the listening sockets, the embedded store if --redis-url is not set, and the replicas."""

import asyncio
import contextlib
import logging
import logging.config
import os
import signal
import socket
from collections.abc import Iterable, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from controller import __version__
from controller.domain.errors import SettingsError, StoreError, StoreIncompatible
from controller.logs import logging_config
from controller.metrics import Metrics, MetricsMemory
from controller.replica import create_registry, create_replica
from controller.security.networks import is_loopback, published_host
from controller.security.tokens import TOKEN_PLANES
from controller.server.certificate import Certificate
from controller.server.open_files import fit_open_files
from controller.server.shutdown import GracefulShutdown
from controller.server.signals import IGNORED, EndSignals, accept_reloads
from controller.server.sockets import BACKLOG, bind_listeners, listen, url
from controller.server.supervisor import ReplicaArguments, Supervisor
from controller.settings import Settings
from controller.settings.store import DEFAULT_DATA_DIR
from controller.store.embedded.store import EmbeddedStore
from controller.store_url import StoreKind, StoreUrl, parse_store_url
from controller.upstream.trust import warn_of_bundle
from controller.web.asgi.connections import ConnectionLimits, ConnectionWatch
from controller.web.asgi.protocol import BoundedProtocol

logger = logging.getLogger("controller.server")

_FINAL_FRAME_TIME: Final = 1.0  # seconds for sending the final frames of streams
_KILL_AFTER: Final = 5.0  # seconds after all time limits until a replica is killed
# libuv looks up names in half of its threads. By default it has four, so two silent name servers of a Redis Sentinel
# could block the lookups of all others.
_LIBUV_THREADS: Final = "16"


def serve(settings: Settings, warnings: Iterable[str] = ()) -> None:
    """Serve until SIGTERM, SIGINT, SIGQUIT, or SIGHUP of a closed terminal.

    warnings: sentences about the command line and the environment, for the log.

    Raises SettingsError if the address cannot be listened on, EmbeddedStoreError if the embedded store cannot be
    started, and StoreIncompatible if Redis holds the registry of another version.
    """
    logging.config.dictConfig(logging_config(settings.log_level, settings.log_format))
    for warning in warnings:
        logger.warning("%s", warning)
    warn_of_bundle()
    if settings.tracing:
        _check_tracing()
    _set_signal_handlers()
    settings = fit_open_files(settings)
    with contextlib.ExitStack() as resources:
        listeners = [resources.enter_context(listener) for listener in bind_listeners(settings.host, settings.port)]
        check_exposure(settings, [str(listener.getsockname()[0]) for listener in listeners])
        store, description = _store(settings, resources)
        resources.callback(_ignore_end_signals)  # they must not interrupt the clean-up
        asyncio.run(_check_layout(settings, store))
        logger.info(
            "controller %s: %s, dispatch by %s, heartbeats expire after %g s, %s",
            __version__,
            description,
            settings.dispatch_method,
            settings.heartbeat_expiration,
            "1 replica" if settings.replicas == 1 else f"{settings.replicas} replicas",
        )
        listen(listeners, settings.host, settings.port)
        address = url("https" if settings.ssl else "http", settings.host, listeners)
        logger.info("Listening on %s (Press CTRL+C to quit)", address)
        _run(settings, store, listeners)


def check_exposure(settings: Settings, addresses: Iterable[str]) -> None:
    """Raise SettingsError if other machines could use the controller without a token or a listed address.

    addresses: the addresses on which the controller listens.
    """
    rules = settings.access_rules
    if rules.is_closed:
        for plane in TOKEN_PLANES:
            if settings.tokens_file is None and not rules.has_rule_for(plane):
                logger.info("Only admin tokens open the routes of the plane %s: it has no token or network.", plane)
        return
    exposed = [published_host(settings.published_host)] if settings.published_host else list(addresses)
    if settings.insecure or all(is_loopback(address) for address in exposed):
        return
    raise SettingsError(
        f"Other machines can reach {', '.join(exposed)}, and everybody there could register workers, read prompts and "
        "remove workers. Set CONTROLLER_WORKER_TOKENS, CONTROLLER_CLIENT_TOKENS and CONTROLLER_ADMIN_TOKENS "
        "(name=token; `openssl rand -hex 32` prints a token), or --tokens-file, or allow networks, for example "
        "--worker-networks 10.0.0.0/8. Or listen on --host localhost. --insecure allows this without access control."
    )


def create_app(
    settings: Settings,
    store: StoreUrl,
    memory: MetricsMemory | None,
    certificate: Certificate | None,
    arguments: ReplicaArguments | None = None,
) -> ASGIApp:
    """Return the application of a replica. Call this in its event loop, after uvicorn has set its signal handlers.

    memory: memory that the counters of all replicas share, or None if there is one replica.
    arguments: arguments from the supervisor, or None if there is one replica.
    """
    metrics = Metrics(memory, arguments.slot if arguments else 0, settings.replicas, settings.dispatch_method)
    replica = create_replica(settings, store, metrics)
    shutdown = GracefulShutdown(settings, replica)
    if arguments is not None:
        shutdown.follow(arguments.orders)
    return replica.app(*([certificate.watch_forever] if certificate else []))


def _run(settings: Settings, store: StoreUrl, listeners: Sequence[socket.socket]) -> None:
    """Run the replicas. Raises SystemExit if they cannot start. The log has the reason."""
    os.environ.setdefault("UV_THREADPOOL_SIZE", _LIBUV_THREADS)  # uvloop reads it at the first lookup
    tls = Certificate(settings.ssl_certfile, settings.ssl_keyfile) if settings.ssl else None  # type: ignore[arg-type]
    config = uvicorn.Config(
        partial(create_app, settings, store, _metrics_memory(settings), tls),
        factory=True,
        ssl_keyfile=settings.ssl_keyfile if settings.ssl else None,
        ssl_certfile=settings.ssl_certfile if settings.ssl else None,
        ssl_context_factory=tls.context if tls else None,
        workers=settings.replicas,
        **uvicorn_options(settings),
    )
    if settings.replicas == 1:
        server = uvicorn.Server(config)
        server.run(list(listeners))
        started = server.started
    else:
        time_limit = settings.shutdown_delay + settings.shutdown_timeout + _FINAL_FRAME_TIME + _KILL_AFTER
        started = Supervisor(config, listeners, time_limit).run()
    if not started:
        raise SystemExit(STARTUP_FAILURE)


def _set_signal_handlers() -> None:
    """Let a signal end the program with exit status 0 while it starts.

    Replicas and the supervisor set their own handlers later. uvicorn raises its signals again after its shutdown, and
    these handlers turn that into exit status 0 too.
    """
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    for number in EndSignals.handled():
        signal.signal(number, _exit)
    accept_reloads()


def _check_tracing() -> None:
    """Raise SettingsError if --tracing cannot work. The replicas start the tracing, each in its process."""
    from controller.tracing import check_environment  # imported only here, because it needs packages that are optional

    check_environment()


def _ignore_end_signals() -> None:
    for number in EndSignals.handled():
        signal.signal(number, signal.SIG_IGN)


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """Return the options of uvicorn for a replica."""
    limits = ConnectionLimits(
        settings.head_timeout, settings.body_timeout, settings.send_timeout, settings.max_connections
    )
    return {
        "loop": "uvloop",
        "http": partial(BoundedProtocol, ConnectionWatch(limits)),
        "ws": "none",
        "log_config": logging_config(settings.log_level, settings.log_format),
        "access_log": False,  # ours is controller/web/asgi/access_log.py
        # Otherwise a pipelined request inherits the request id and the trace of the one before it.
        "reset_contextvars": True,
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "backlog": BACKLOG,
        "timeout_keep_alive": settings.idle_timeout,
        "timeout_graceful_shutdown": ceil(settings.shutdown_timeout + _FINAL_FRAME_TIME),  # uvicorn takes whole seconds
    }


def _store(settings: Settings, resources: contextlib.ExitStack) -> tuple[StoreUrl, str]:
    """Return the store to use, and its description for the log."""
    configured = settings.store_url()
    if configured.kind is not StoreKind.EMBEDDED:
        return configured, f"store {configured}"  # str() omits the password
    data_dir = Path(configured.path) if configured.path else settings.data_dir or DEFAULT_DATA_DIR
    store = resources.enter_context(EmbeddedStore(data_dir))
    return parse_store_url(store.url), f"embedded store (process {store.pid}) in {store.data_dir}"


async def _check_layout(settings: Settings, store: StoreUrl) -> None:
    """Raise StoreIncompatible if Redis holds another key layout. If Redis is unavailable, the replicas wait for it."""
    registry = create_registry(settings, store)
    try:
        await registry.check()
    except StoreIncompatible:
        raise
    except StoreError as error:
        logger.warning("Redis is unavailable: %s Starting anyway. The replicas keep trying to reach it.", error)
    finally:
        await registry.close()


def _metrics_memory(settings: Settings) -> MetricsMemory | None:
    if settings.replicas == 1:
        return None
    try:
        return MetricsMemory(settings.replicas)
    except OSError as error:
        logger.warning(
            "The replicas cannot share memory: %s. GET /metrics returns the counters of one replica only.", error
        )
        return None


def _exit(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
