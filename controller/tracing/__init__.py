"""Traces of the requests of clients, sent to a collector by OpenTelemetry. Nothing imports it if --tracing is off.

A request for a stream has these spans:

    POST /worker_generate_stream    from the head of the request to the end of the response
        choose                      choice and booking of a worker
        POST                        one for each worker that is tried, until its response ends
            wait                    until the first part of the worker's response

Raises SettingsError on import if OpenTelemetry is not installed.
"""

from controller.domain.errors import SettingsError

try:
    from controller.tracing.provider import Tracing, check_environment
except ImportError as error:
    raise SettingsError(
        f"--tracing needs OpenTelemetry, and the module {error.name} is not installed. Run: "
        "pip install 'controller-cluster[otel]'"
    ) from error

__all__ = ["Tracing", "check_environment"]
