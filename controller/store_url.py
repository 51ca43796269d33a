"""Parses the URLs that --redis-url accepts."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from controller.domain.errors import SettingsError

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?\Z")
# The part before the hosts, the hosts, and the rest.
_AROUND_HOSTS: Final = re.compile(r"([^:/?#]*://(?:[^/?#]*@)?)([^/?#]*)(.*)", re.DOTALL)
_SENTINEL_OPTIONS: Final = {"sentinel_username", "sentinel_password"}
_FORMS: Final = (
    "redis://[user:password@]host[:port][/number], rediss://... (TLS), unix:///path/to/socket, "
    "redis+sentinel://[user:password@]host[:port],host[:port],.../name-of-the-master[/number], "
    "redis+cluster://[user:password@]host[:port],host[:port],... (rediss+... for TLS) or embedded://[/directory]"
)


class StoreKind(StrEnum):
    """The kinds of Redis deployments."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"
    EMBEDDED = "embedded"


_SCHEMES: Final = {
    "redis": (StoreKind.SINGLE, 6379),
    "redis+sentinel": (StoreKind.SENTINEL, 26379),
    "redis+cluster": (StoreKind.CLUSTER, 6379),
}


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A parsed URL of the store.

    hosts: pairs of host and port of the server, of the Sentinels, or of some nodes of the Cluster.
    path: a unix socket, or the data directory of the embedded store. "" if the URL has no path.
    password_file: holds the password instead of `password`. It is read for each connection, so that a new password
        works without a restart.
    database: number of the database.
    master: name of the master that the Sentinels watch.
    """

    kind: StoreKind
    tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    database: int = 0
    master: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Return the URL for a log, without user names and passwords."""
        if self.kind is StoreKind.EMBEDDED:
            return f"embedded://{self.path}"
        if self.path:
            return f"unix://{self.path}"
        scheme = "rediss" if self.tls else "redis"
        kind = "" if self.kind is StoreKind.SINGLE else f"+{self.kind}"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        tail = [part for part in (self.master, str(self.database or "")) if part]
        return "/".join([f"{scheme}{kind}://{hosts}", *tail])


def read_password_file(path: Path) -> str:
    """Return the password in a file, without the line break at its end. Raises SettingsError if it has no password."""
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise SettingsError(f"--redis-password-file {path} cannot be read: {error.strerror}.") from error
    except ValueError:  # the cause is dropped, because it quotes a part of the password
        raise SettingsError(f"--redis-password-file {path} cannot be read: it is not UTF-8.") from None
    if not password:
        raise SettingsError(f"--redis-password-file {path} is empty.")
    return password


def parse_store_url(text: str) -> StoreUrl:
    """Parse a URL. Raises SettingsError with the fault and all valid forms, but without the URL and its password."""
    try:
        return _parse(text)
    except ValueError as error:
        raise SettingsError(f"--redis-url {error}. It must look like {_FORMS}.") from error


def _parse(text: str) -> StoreUrl:
    # urlsplit() of some versions, such as Debian's 3.11.2, refuses a list of hosts with brackets in it, as a,[::1].
    before, hosts, after = match.groups() if (match := _AROUND_HOSTS.match(text)) else (text, "", "")
    try:
        parts = urlsplit(before + after)
    except ValueError:
        raise ValueError("is not a URL") from None  # the cause is dropped, because it may quote the password
    if text != text.strip() or re.search(r"[\x00-\x20\x7f]", text):  # urlsplit() silently drops tabs and line breaks
        raise ValueError("has a space or a control character in it")
    if parts.fragment:
        raise ValueError("must not have a fragment (write # in a password as %23)")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.query and not (parts.scheme.endswith("+sentinel") and options and options.keys() <= _SENTINEL_OPTIONS):
        raise ValueError(
            "must not have query parameters other than sentinel_username and sentinel_password, which need Sentinel"
        )
    if parts.scheme in ("unix", "embedded"):
        # A path may contain bytes that are not UTF-8. Surrogates stand for these bytes.
        return _local(parts.scheme, parts.netloc + hosts, unquote(parts.path, errors="surrogateescape"))
    tls = parts.scheme.startswith("rediss")
    scheme = parts.scheme.replace("rediss", "redis", 1)
    if scheme not in _SCHEMES:
        raise ValueError("has an unknown scheme")
    kind, default_port = _SCHEMES[scheme]
    username, _, password = parts.netloc.removesuffix("@").partition(":")
    path = parts.path.removeprefix("/").split("/") if parts.path not in ("", "/") else []
    master = unquote(path.pop(0)) if kind is StoreKind.SENTINEL and path else ""
    if kind is StoreKind.SENTINEL and not master:
        raise ValueError("lacks the name of the master after the hosts of the Sentinels")
    if len(path) > 1 or (path and not re.fullmatch(r"[0-9]{1,6}", path[0])):
        raise ValueError("has an invalid database number at its end")
    if path and kind is StoreKind.CLUSTER and int(path[0]):
        raise ValueError("must not name a database, because a Redis Cluster has only database 0")
    addresses = tuple(_host(host, default_port) for host in hosts.split(","))
    if kind is StoreKind.SINGLE and len(addresses) > 1:
        raise ValueError("names several hosts, which needs +sentinel or +cluster in the scheme")
    return StoreUrl(
        kind=kind,
        tls=tls,
        hosts=addresses,
        username=unquote(username) or None,
        password=unquote(password) or None,
        database=int(path[0]) if path else 0,
        master=master,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _local(scheme: str, host: str, path: str) -> StoreUrl:
    if host:
        raise ValueError(f"must have three slashes and a path after {scheme}:, and no host")
    if "\0" in path:
        raise ValueError("has a zero byte in its path")
    if scheme == "embedded":
        return StoreUrl(StoreKind.EMBEDDED, path=path)
    if len(path) < 2:
        raise ValueError("lacks the path of a socket")
    return StoreUrl(StoreKind.SINGLE, path=path)


def _host(text: str, default_port: int) -> tuple[str, int]:
    match = _HOST.match(text)
    if not match:
        raise ValueError("has an invalid host" if text else "lacks a host")
    host = match[1].strip("[]")
    if match[1].startswith("["):
        try:
            IPv6Address(host)
        except ValueError:
            raise ValueError("has an invalid host") from None
    port = int(match[2]) if match[2] else default_port
    if not 1 <= port <= 65535:
        raise ValueError("has an invalid port")
    return host, port
