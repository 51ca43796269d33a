"""How the store is named: the URLs that --redis-url takes, taken apart."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from controller.domain.errors import SettingsError

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?\Z")
_SENTINEL_OPTIONS: Final = {"sentinel_username", "sentinel_password"}
_FORMS: Final = (
    "redis://[user:password@]host[:port][/number], rediss://... (TLS), unix:///path/to/socket, "
    "redis+sentinel://[user:password@]host[:port],host[:port],.../name-of-the-master[/number], "
    "redis+cluster://[user:password@]host[:port],host[:port],... (rediss+... for TLS) or embedded://[/directory]"
)


class StoreKind(StrEnum):
    """What kind of Redis it is."""

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
    """A store's URL, taken apart.

    hosts are pairs of host and port: one server, or the Sentinels, or nodes of the Cluster to begin with. path is a
    unix socket, or the data directory of the embedded store; "" where it is not named. password_file holds the password
    instead of `password`, and is read for each connection, so that a new password in it is taken up.
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
        """How to call it in a log: without user names and passwords."""
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
    """Return the password in a file, without the line break at its end. Raises SettingsError if there is none."""
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise SettingsError(f"--redis-password-file {path} cannot be read: {error.strerror}.") from error
    except ValueError:  # without its cause, which quotes a part of the password
        raise SettingsError(f"--redis-password-file {path} cannot be read: it is not UTF-8.") from None
    if not password:
        raise SettingsError(f"--redis-password-file {path} is empty.")
    return password


def parse_store_url(text: str) -> StoreUrl:
    """Take a URL apart. Raises SettingsError, in a sentence that says which forms there are and what is wrong."""
    try:
        return _parse(text)
    except ValueError as error:
        # Not the URL itself: it may have a password in it.
        raise SettingsError(f"--redis-url {error}. It must look like {_FORMS}.") from error


def _parse(text: str) -> StoreUrl:
    try:
        parts = urlsplit(text)  # it would drop tabs and line breaks in silence
    except ValueError:
        raise ValueError("is not a URL") from None  # without the reason: it quotes what may be the password
    if text != text.strip() or re.search(r"[\x00-\x20\x7f]", text):
        raise ValueError("has a space or a control character in it")
    if parts.fragment:
        raise ValueError("must not have a fragment (write # in a password as %23)")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.query and not (parts.scheme.endswith("+sentinel") and options and options.keys() <= _SENTINEL_OPTIONS):
        raise ValueError(
            "takes no options behind a question mark, but for sentinel_username and sentinel_password with Sentinel"
        )
    if parts.scheme in ("unix", "embedded"):
        # A path is bytes, which need not be UTF-8; surrogates stand for those that are not.
        return _local(parts.scheme, parts.netloc, unquote(parts.path, errors="surrogateescape"))
    tls = parts.scheme.startswith("rediss")
    scheme = parts.scheme.replace("rediss", "redis", 1)
    if scheme not in _SCHEMES:
        raise ValueError("has a scheme that is not known")
    kind, default_port = _SCHEMES[scheme]
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    path = parts.path.removeprefix("/").split("/") if parts.path not in ("", "/") else []
    master = unquote(path.pop(0)) if kind is StoreKind.SENTINEL and path else ""
    if kind is StoreKind.SENTINEL and not master:
        raise ValueError("names no master behind the Sentinels' hosts")
    if len(path) > 1 or (path and not re.fullmatch(r"[0-9]{1,6}", path[0])):
        raise ValueError("has something else than a database's number at its end")
    if path and kind is StoreKind.CLUSTER and int(path[0]):
        raise ValueError("must not name a database: a Redis Cluster has but one")
    found = tuple(_host(host, default_port) for host in hosts.split(","))
    if kind is StoreKind.SINGLE and len(found) > 1:
        raise ValueError("names several hosts, but neither +sentinel nor +cluster")
    return StoreUrl(
        kind=kind,
        tls=tls,
        hosts=found,
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
        raise ValueError("names no socket")
    return StoreUrl(StoreKind.SINGLE, path=path)


def _host(text: str, default_port: int) -> tuple[str, int]:
    match = _HOST.match(text)
    if not match:
        raise ValueError("names no host, or one that cannot be" if not text else "has a host that cannot be")
    port = int(match[2]) if match[2] else default_port
    if not 1 <= port <= 65535:
        raise ValueError("has a port that cannot be")
    return match[1].strip("[]"), port
