"""The sources that list engines: the file of --workers-file, and the names of --workers-dns."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from controller.domain.engine_entry import EngineEntry, EngineSource
from controller.domain.errors import SettingsError
from controller.domain.worker import worker_name
from controller.file_version import file_version
from controller.settings import Settings
from controller.settings.workers_file import EngineList, read_workers_file
from controller.tasks import end
from controller.upstream.lookups import Resolver

logger = logging.getLogger("controller")

_LOOKUP_INTERVAL: Final = 5.0  # seconds between two lookups of a name
_MAX_MISSES: Final = 3  # consecutive lookups without an address, after which it has left the name


class Proposal(NamedTuple):
    """The engines that a source lists, by the names of the workers.

    is_complete: an engine that is missing in it has left the source. Otherwise the source may not know it yet.
    """

    engines: Mapping[str, EngineEntry]
    is_complete: bool = True


class Source(Protocol):
    """Lists engines."""

    kind: EngineSource
    flag: str

    async def read(self) -> Proposal | None:
        """Return what the source lists now. None if it has never listed anything. It does not wait for a network."""
        ...

    async def close(self) -> None:
        """End the background work."""
        ...


class FileSource:
    """The engines of a YAML file. It is read again when it has changed, and a file with a key in it, too.

    A changed file counts when two looks have found the same version of it, because it may not be written to its end.
    A wrong file is logged once, and changes nothing.
    """

    kind = EngineSource.FILE
    flag = "--workers-file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listed: EngineList | None = None
        self._proposal: Proposal | None = None
        self._seen: object = None  # the version of the file at the last look
        self._read: object = None  # the version that was read
        self._logged = ""

    async def read(self) -> Proposal | None:
        """Return the engines of the last file that was right. None if there was none."""
        await asyncio.to_thread(self._look)
        return self._proposal

    def _look(self) -> None:
        version = self._version()
        is_stable, self._seen = version == self._seen or self._read is None, version
        if version == self._read or not is_stable:
            return
        self._read = version
        try:
            listed = read_workers_file(self._path)
        except SettingsError as error:
            if str(error) != self._logged:
                logger.error("%s The engines stay as they were.", error)  # noqa: TRY400 - no traceback needed
            self._logged = str(error)
            return
        self._logged = ""
        if self._listed is None or listed.engines != self._listed.engines:
            logger.info("Read %d engines from %s.", len(listed.engines), self._path)
            self._proposal = Proposal(listed.engines)
        # The files of the keys are part of the next version, so they are read once more after they are known.
        self._listed = listed

    def _version(self) -> object:
        keys = self._listed.key_files if self._listed else ()
        return [_version_of(path) for path in (self._path, *keys)]

    async def close(self) -> None:
        """End nothing."""


def _version_of(path: Path) -> object:
    try:
        return file_version(path)
    except OSError as error:
        return str(error)


Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class DnsSource:
    """The addresses of names. An address that several lookups did not return has left its name.

    A lookup that fails changes nothing. Addresses count as missing only after several lookups of each name, because
    a DNS server may return some of its addresses at a time.

    names: each with its port.
    resolve: returns the IP addresses of a name. Raises OSError, or ValueError if it cannot be a name.
    """

    kind = EngineSource.DNS
    flag = "--workers-dns"

    def __init__(self, names: Sequence[tuple[str, int]], resolve: Resolve | None = None) -> None:
        self._resolver = Resolver()
        self._names = [_Name(host, port, resolve or self._resolve) for host, port in names]

    async def read(self) -> Proposal | None:
        """Return the engines at the addresses of all names. None until a lookup has succeeded."""
        for name in self._names:
            name.advance()
        if not any(name.lookups for name in self._names):
            return None
        engines = [worker_name(url) for name in self._names for url in name.urls()]
        entry = EngineEntry(source=EngineSource.DNS)
        return Proposal(dict.fromkeys(engines, entry), all(name.lookups >= _MAX_MISSES for name in self._names))

    async def _resolve(self, host: str, port: int) -> Sequence[str]:
        return [found["host"] for found in await self._resolver.resolve(host, port)]

    async def close(self) -> None:
        """End the lookups."""
        await end([name.running for name in self._names if name.running])
        await self._resolver.close()


def sources_of(settings: Settings) -> Sequence[Source]:
    """Return the sources that are set."""
    sources: list[Source] = []
    if settings.workers_file is not None:
        sources.append(FileSource(settings.workers_file))
    if settings.dns_names:
        sources.append(DnsSource(settings.dns_names))
    return sources


class _Name:
    """One name. lookups: how many have succeeded."""

    def __init__(self, host: str, port: int, resolve: Resolve) -> None:
        self.lookups = 0
        self.running: asyncio.Task[Sequence[str]] | None = None
        self._host = host
        self._port = port
        self._resolve = resolve
        self._due = float("-inf")
        self._misses: dict[str, int] = {}  # consecutive lookups without it, by address
        self._has_failed = False

    def urls(self) -> Sequence[str]:
        """Return the URLs of the engines."""
        hosts = (f"[{address}]" if ":" in address else address for address in self._misses)
        return [f"http://{host}:{self._port}" for host in hosts]

    def advance(self) -> None:
        """Take the result of a lookup that has ended, and start one that is due."""
        if self.running is not None and self.running.done():
            running, self.running = self.running, None
            try:
                self._take(_of_one_family(running.result()))
            except (OSError, ValueError) as error:  # ValueError: a label of the name is too long
                if not self._has_failed:
                    logger.warning(
                        "--workers-dns: the lookup of %(host)s failed, so its engines stay as they were: %(reason)s",
                        {"host": self._host, "reason": error},
                    )
                self._has_failed = True
        now = time.monotonic()
        if self.running is None and now >= self._due:
            self._due = now + _LOOKUP_INTERVAL
            self.running = asyncio.ensure_future(self._resolve(self._host, self._port))

    def _take(self, addresses: Sequence[str]) -> None:
        if not addresses:
            return  # as a name that is not found
        if self._has_failed:
            logger.info("--workers-dns: the lookup of %(host)s succeeds again.", {"host": self._host})
        self._has_failed = False
        self.lookups += 1
        missed = {address: misses + 1 for address, misses in self._misses.items() if misses + 1 < _MAX_MISSES}
        self._misses = {**missed, **dict.fromkeys(addresses, 0)}


def _of_one_family(addresses: Sequence[str]) -> Sequence[str]:
    """Return the IPv4 addresses, or the IPv6 addresses if there are none. A machine with both is one engine."""
    plain = [address for address in addresses if "%" not in address]  # a link-local address with a zone
    return [each for each in plain if ip_address(each).version == 4] or plain
