"""Raises the limit of open files. Each connection of a client or a worker counts towards it."""

import logging
import resource
from dataclasses import replace
from typing import Final

from controller.settings import Settings

logger = logging.getLogger("controller.server")

_OTHERS: Final = 512  # connections to Redis and for probes and polls, listening sockets, logs
_LEAST_CONNECTIONS: Final = 64


def fit_open_files(settings: Settings) -> Settings:
    """Raise the limit of open files to what the settings need. Return the settings with what it allows.

    The soft limit is 1,024 on many machines, and a process may raise it to the hard limit. Replicas inherit it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + settings.max_forwards + _OTHERS
    if settings.max_connections == 0 or settings.max_forwards == 0:
        wanted = hard
    if soft != resource.RLIM_INFINITY and (soft < wanted or wanted == resource.RLIM_INFINITY):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (OSError, ValueError):  # macOS has another limit beside the hard one
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or not settings.max_connections:
        return settings
    allowed = max(_LEAST_CONNECTIONS, soft - _OTHERS - min(settings.max_forwards, soft // 3))
    if allowed >= settings.max_connections:
        return settings
    logger.warning(
        "A replica may open %d files, so it accepts %d connections and not the %d of --max-connections. Raise the "
        "limit of open files (ulimit -n, or LimitNOFILE of systemd).",
        soft,
        allowed,
        settings.max_connections,
    )
    return replace(settings, max_connections=allowed)
