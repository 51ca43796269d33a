"""Logging: one line for each event on standard error."""

from typing import Any


def logging_config(level: str) -> dict[str, Any]:
    """Return the configuration of logging for the controller and for uvicorn."""
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
