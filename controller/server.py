"""Runs replicas: the embedded store where none is named, uvicorn, and one process or several."""

import asyncio
import contextlib
import logging
import logging.config
import multiprocessing
import os
import signal
import socket
import tempfile
from functools import partial
from math import ceil
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess

from controller import __version__
from controller.domain.errors import StoreError, StoreIncompatible
from controller.listening import BACKLOG, bind_listeners, listen, url
from controller.metrics import Metrics
from controller.service import Controller
from controller.settings import DEFAULT_DATA_DIR, Settings
from controller.store.embedded import EmbeddedStore
from controller.store_url import StoreKind, StoreUrl, parse_store_url
from controller.upstream.trust import warn_of_bundle
from controller.web.app import build_app, create_controller, create_registry
from controller.web.protocol import BoundedProtocol

logger = logging.getLogger("controller.server")

_LAST_WORDS: Final = 1.0  # that streams have, once they are broken off, to say so


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises SettingsError when the address cannot be listened on, EmbeddedStoreError when the embedded store cannot be
    started, StoreIncompatible when the store holds the registry of another version.
    """
    logging.config.dictConfig(logging_config(settings.log_level))
    warn_of_bundle()
    signal.signal(signal.SIGTERM, _exit)  # uvicorn raises its signals again once it has shut down
    with contextlib.ExitStack() as resources:
        listeners = [resources.enter_context(one) for one in bind_listeners(settings.host, settings.port)]
        store, told = _store(settings, resources)
        asyncio.run(_check_layout(settings, store))
        logger.info(
            "controller %s: %s, dispatch by %s, heartbeats expire after %g s, %s",
            __version__,
            told,
            settings.dispatch_method,
            settings.heartbeat_expiration,
            "1 replica" if settings.replicas == 1 else f"{settings.replicas} replicas",
        )
        metrics_dir = _shared_metrics_dir(resources) if settings.replicas > 1 else None
        server_config = uvicorn.Config(
            partial(replica, settings, store, metrics_dir),
            factory=True,
            ssl_keyfile=settings.ssl_keyfile if settings.ssl else None,
            ssl_certfile=settings.ssl_certfile if settings.ssl else None,
            workers=settings.replicas,
            **uvicorn_options(settings),
        )
        listen(listeners, settings.host, settings.port)
        address = url("https" if settings.ssl else "http", settings.host, listeners)
        logger.info("Listening on %s (Press CTRL+C to quit)", address)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is a way to end it, not an error
            _run(server_config, listeners)


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


def _run(config: uvicorn.Config, listeners: list[socket.socket]) -> None:
    if config.workers > 1:
        Multiprocess(config, listeners).run()
        return
    server = uvicorn.Server(config)
    server.run(listeners)
    if not server.started:
        raise SystemExit(1)  # uvicorn has logged why


def replica(settings: Settings, store: StoreUrl, metrics_dir: Path | None) -> ASGIApp:
    """The application of one replica; in a child process, one that ends with its parent."""
    metrics = Metrics(metrics_dir)
    controller = create_controller(settings, store, metrics)
    departure = _Departure(settings, controller)
    parent = multiprocessing.parent_process()
    if parent is not None:
        departure.follow(parent.sentinel)
    return build_app(controller, metrics)


class _Departure:
    """Ends a replica in steps, once uvicorn's handlers of signals are in place.

    SIGTERM: /readyz is 503 while all else is served; after the shutdown delay uvicorn closes the port and waits for
    what is under way; streams that take longer than the shutdown timeout are broken off, with a last frame. Another
    SIGTERM, SIGINT and the death of the parent leave out the delay.
    """

    def __init__(self, settings: Settings, controller: Controller) -> None:
        self._settings = settings
        self._controller = controller
        self._loop = asyncio.get_running_loop()
        self._leaving = False
        self._uvicorn = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in self._uvicorn:
            signal.signal(number, self._signalled)

    def follow(self, sentinel: int) -> None:
        """End when the process does whose end this file descriptor tells of."""
        self._loop.add_reader(sentinel, self._parent_died, sentinel)

    def _parent_died(self, sentinel: int) -> None:
        self._loop.remove_reader(sentinel)
        logger.error("The process that started this replica is gone; ending too, so that it can be started anew.")
        self._end(signal.SIGTERM)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        # A signal's handler runs between any two instructions of the loop's thread: leave the work to the loop.
        self._loop.call_soon_threadsafe(self._leave, number)

    def _leave(self, number: int) -> None:
        if self._leaving or number == signal.SIGINT:
            self._end(number)
            return
        self._leaving = True
        self._controller.leave()
        logger.info("Shutting down: serving for %g s more.", self._settings.shutdown_delay)
        self._loop.call_later(self._settings.shutdown_delay, self._end, number)

    def _end(self, number: int) -> None:
        self._loop.call_later(self._settings.shutdown_timeout, self._controller.end_streams)
        self._controller.end_patience()
        handler = self._uvicorn[signal.Signals(number)]
        if callable(handler):
            handler(number, None)


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


def _shared_metrics_dir(resources: contextlib.ExitStack) -> Path:
    """The directory in which the replicas add up their counters; prometheus_client finds it by the environment."""
    directory = resources.enter_context(tempfile.TemporaryDirectory(prefix="controller-metrics-"))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    return Path(directory)


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
