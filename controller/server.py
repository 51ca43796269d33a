"""Runs `controller serve`: the listening sockets, the embedded store if no Redis is named, and the replicas."""

import asyncio
import contextlib
import logging
import logging.config
import signal
import socket
from collections.abc import Sequence
from functools import partial
from math import ceil
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from controller import __version__
from controller.domain.errors import StoreError, StoreIncompatible
from controller.listening import BACKLOG, bind_listeners, listen, url
from controller.metrics import CounterMemory
from controller.replica import replica
from controller.settings import DEFAULT_DATA_DIR, Settings
from controller.store.embedded import EmbeddedStore
from controller.store_url import StoreKind, StoreUrl, parse_store_url
from controller.supervisor import CHANGE_NOTHING, EndSignals, Supervisor
from controller.tls import Certificate
from controller.upstream.trust import warn_of_bundle
from controller.web.app import create_registry
from controller.web.protocol import BoundedProtocol

logger = logging.getLogger("controller.server")

_LAST_WORDS: Final = 1.0  # that streams have, once they are broken off, to say so
_KILL_AFTER: Final = 5.0  # seconds beyond all of its time limits in which a replica has not ended


def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT, SIGHUP or SIGQUIT.

    Raises SettingsError when the address cannot be listened on, EmbeddedStoreError when the embedded store cannot be
    started, StoreIncompatible when the store holds the registry of another version.
    """
    logging.config.dictConfig(logging_config(settings.log_level))
    warn_of_bundle()
    _set_signal_handlers()
    with contextlib.ExitStack() as resources:
        listeners = [resources.enter_context(one) for one in bind_listeners(settings.host, settings.port)]
        store, told = _store(settings, resources)
        resources.callback(_ignore_end_signals)  # they must not break off the clean-up
        asyncio.run(_check_layout(settings, store))
        logger.info(
            "controller %s: %s, dispatch by %s, heartbeats expire after %g s, %s",
            __version__,
            told,
            settings.dispatch_method,
            settings.heartbeat_expiration,
            "1 replica" if settings.replicas == 1 else f"{settings.replicas} replicas",
        )
        listen(listeners, settings.host, settings.port)
        address = url("https" if settings.ssl else "http", settings.host, listeners)
        logger.info("Listening on %s (Press CTRL+C to quit)", address)
        _run(settings, store, listeners)


def _run(settings: Settings, store: StoreUrl, listeners: Sequence[socket.socket]) -> None:
    """Run the replicas. Raises SystemExit if they cannot start; what is wrong is in the log."""
    tls = Certificate(settings.ssl_certfile, settings.ssl_keyfile) if settings.ssl else None  # type: ignore[arg-type]
    config = uvicorn.Config(
        partial(replica, settings, store, _counter_memory(settings), tls),
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
        time_limit = settings.shutdown_delay + settings.shutdown_timeout + _LAST_WORDS + _KILL_AFTER
        started = Supervisor(config, listeners, time_limit).run()
    if not started:
        raise SystemExit(STARTUP_FAILURE)


def _set_signal_handlers() -> None:
    """Let signals end a start in order. Once replicas run, they and the supervisor have handlers of their own.

    uvicorn raises its signals again when it has shut down: these handlers make that an exit with status 0.
    """
    for number in CHANGE_NOTHING:
        signal.signal(number, signal.SIG_IGN)
    for number in EndSignals.heeded():
        signal.signal(number, _exit)


def _ignore_end_signals() -> None:
    for number in EndSignals.heeded():
        signal.signal(number, signal.SIG_IGN)


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """How uvicorn runs a replica."""
    return {
        "loop": "uvloop",
        "http": BoundedProtocol,
        "ws": "none",
        "log_config": logging_config(settings.log_level),
        "access_log": False,  # a line a request would cost as much as the request
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "backlog": BACKLOG,
        "timeout_keep_alive": 75,  # longer than clients' pools keep a connection idle, so that they close first
        "timeout_graceful_shutdown": ceil(settings.shutdown_timeout + _LAST_WORDS),  # uvicorn takes whole seconds
    }


def _store(settings: Settings, resources: contextlib.ExitStack) -> tuple[StoreUrl, str]:
    """The store to use, and how to call it in the log."""
    named = settings.store_url()
    if named.kind is not StoreKind.EMBEDDED:
        return named, f"store {named}"  # written without the password
    data_dir = Path(named.path) if named.path else settings.data_dir or DEFAULT_DATA_DIR
    store = resources.enter_context(EmbeddedStore(data_dir))
    return parse_store_url(store.url), f"embedded store (process {store.pid}) in {store.data_dir}"


async def _check_layout(settings: Settings, store: StoreUrl) -> None:
    """Raise StoreIncompatible if it is. A store that is not there yet is waited for, by the replicas."""
    registry = create_registry(settings, store)
    try:
        await registry.check()
    except StoreIncompatible:
        raise
    except StoreError as error:
        logger.warning("Starting without the store. %s", error)
    finally:
        await registry.close()


def _counter_memory(settings: Settings) -> CounterMemory | None:
    if settings.replicas == 1:
        return None
    try:
        return CounterMemory(settings.replicas)
    except OSError as error:
        logger.warning("The replicas cannot share memory, so GET /metrics tells the counts of one of them: %s.", error)
        return None


def logging_config(level: str) -> dict[str, Any]:
    """Logging for us and for uvicorn: one line an event on standard error."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {
            name: {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
            for name in ("controller", "uvicorn")
        },
    }


def _exit(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
