"""The tokens that workers require of us (`--upstream-tokens-file`). Each is sent only to the workers that it is for."""

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from controller.domain.errors import InvalidInput, SettingsError
from controller.domain.worker import worker_name
from controller.file_version import file_version
from controller.security.worker_patterns import FORMS, WorkerPattern, parse_address, parse_pattern

logger = logging.getLogger("controller")

_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,4096}\Z")
_CHECK_INTERVAL: Final = 1.0  # seconds between two looks at the file
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_CACHED: Final = 10_000


class _Line(NamedTuple):
    """A line of the file: a worker's name or a pattern, and the header for the workers that it covers."""

    worker: str | WorkerPattern
    header: str

    def covers(self, name: str, host: str, port: int) -> bool:
        if isinstance(self.worker, str):
            return self.worker == name
        address = parse_address(host)
        if address is None:
            return self.worker.covers_name(host, port)
        return self.worker.covers_address(address, port)


class UpstreamTokens:
    """The tokens of a file. It is read again when it has changed, and looked at no more than once a second.

    path: None if there is no file. Raises SettingsError if the file cannot be read or has an invalid line.
    clock: returns a time in seconds.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._checked_at = clock()
        self._version: object = None
        self._lines: tuple[_Line, ...] = ()
        self._headers: dict[str, str] = {}
        if path is not None:
            self._version = _version(path)
            self._lines = _read(path)

    def header(self, name: str) -> str:
        """Return the value of the Authorization header for a worker, or "" if no line covers it.

        name: the canonical name of the worker. A pattern of addresses covers only names that consist of an address,
        because a host name could get another address at any time.
        """
        if self._path is None:
            return ""
        if self._clock() - self._checked_at >= _CHECK_INTERVAL:
            self._update(self._path)
        header = self._headers.get(name)
        if header is None:
            if len(self._headers) >= _MAX_CACHED:
                self._headers.clear()
            header = self._headers[name] = self._find(name)
        return header

    def _find(self, name: str) -> str:
        if not self._lines:
            return ""
        try:
            parts = urlsplit(name)
            host, port = parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme]
        except (ValueError, KeyError):
            return ""  # not the name of a worker
        return next((line.header for line in self._lines if line.covers(name, host, port)), "")

    def _update(self, path: Path) -> None:
        self._checked_at = self._clock()
        version = _version(path)
        if version == self._version:
            return
        self._version = version
        try:
            lines = _read(path)
        except SettingsError as error:
            logger.error("%s The tokens that were read before stay in use.", error)  # noqa: TRY400 - not a bug
            return
        self._lines = lines
        self._headers.clear()
        logger.info("Read %s again: it has tokens for %d workers or patterns.", path, len(lines))


def _version(path: Path) -> object:
    """Return what differs after a change of the file, or None if there is no such file."""
    try:
        return file_version(path)
    except OSError:
        return None


def _read(path: Path) -> tuple[_Line, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--upstream-tokens-file {path} cannot be read: {error.strerror}.") from error
    except ValueError:  # the cause is dropped, because it quotes a part of the file
        raise SettingsError(f"--upstream-tokens-file {path} cannot be read: it is not UTF-8.") from None
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                lines.append(_parse(*line.split()))
            except (TypeError, ValueError, InvalidInput):  # the message must not quote the token
                raise SettingsError(
                    f"--upstream-tokens-file {path} is wrong in line {number}. A line has a worker, white space and a "
                    f"token of printable ASCII characters. The worker is a URL such as http://10.0.0.5:21002, {FORMS}."
                ) from None
    return tuple(lines)


def _parse(worker: str, token: str) -> _Line:
    if not _TOKEN.match(token):
        raise ValueError("the token has a character that is not printable ASCII")
    return _Line(worker_name(worker) if "://" in worker else parse_pattern(worker), f"Bearer {token}")
