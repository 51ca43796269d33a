"""Tokens: secrets with a name, each for one plane. Only their SHA-256 digests are kept."""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from controller.domain.errors import InvalidInput
from controller.security.worker_patterns import FORMS, parse_address, parse_pattern

MIN_LENGTH: Final = 16
_MAX_LENGTH: Final = 256
MAX_PATTERNS: Final = 64
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
# Printable characters that no list of tokens uses as a separator. "=" may pad a token at its end.
_SECRET: Final = re.compile(r"[!-+\--<>-~]+=*\Z")
PATTERN: Final = re.compile(r"[!-+\--~]{1,512}\Z")


class Plane(StrEnum):
    """The kind of caller that a route is for."""

    PUBLIC = "public"
    WORKER = "worker"
    CLIENT = "client"
    ADMIN = "admin"


TOKEN_PLANES: Final = (Plane.WORKER, Plane.CLIENT, Plane.ADMIN)


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret.

    name: appears in logs.
    digest: SHA-256 of the secret, in hexadecimal. Created secrets have 256 random bits.
    workers: patterns of the workers that a worker token may speak for, as in --worker-allow. Empty: all workers.
    models: patterns of the models that these workers may serve, with * and ?. Empty: all models.

    Raises InvalidInput if a value is not allowed.
    """

    name: str
    plane: Plane
    digest: str
    workers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        token_name(self.name)
        if self.plane not in TOKEN_PLANES:
            raise InvalidInput("plane", "must be worker, client or admin")
        for field, patterns in (("workers", self.workers), ("models", self.models)):
            if patterns and self.plane is not Plane.WORKER:
                raise InvalidInput(field, "can be set for tokens of the plane worker only")
            if len(patterns) > MAX_PATTERNS or not all(PATTERN.match(pattern) for pattern in patterns):
                raise InvalidInput(
                    field,
                    f"must be at most {MAX_PATTERNS} patterns, each with at most 512 characters, without spaces and "
                    "commas",
                )
        for pattern in self.workers:
            try:
                parse_pattern(pattern)
            except ValueError as error:
                raise InvalidInput(
                    "workers",
                    f"has {pattern!r}, but {error}. A pattern is {FORMS}. A port or a range of ports may follow",
                ) from error

    def allows(self, plane: Plane) -> bool:
        """Return True if the token opens the routes of a plane. An admin token opens all."""
        return self.plane in (plane, Plane.ADMIN)

    def may_speak_for(self, worker: str) -> bool:
        """Return True if the token's holder may act for a worker."""
        return not self.workers or _covers(self.workers, worker)

    def forbidden_models(self, models: Iterable[str]) -> list[str]:
        """Return those of `models` that the token's workers have no right to serve."""
        if not self.models:
            return []
        return [model for model in models if not any(fnmatchcase(model, pattern) for pattern in self.models)]


def token_name(text: str) -> str:
    """Return the name of a token. Raises InvalidInput if no token can have it."""
    if not NAME.match(text):
        raise InvalidInput(
            "name",
            "must have 1 to 64 characters: letters, digits, dots, dashes and underscores, and begin with a letter or a "
            "digit",
        )
    return text


@lru_cache(maxsize=20_000)  # each heartbeat repeats its worker's name
def _covers(patterns: tuple[str, ...], worker: str) -> bool:
    parts = urlsplit(worker)
    host, port = parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    address = parse_address(host)
    parsed = map(parse_pattern, patterns)
    if address is None:
        return any(pattern.covers_name(host, port) for pattern in parsed)
    return any(pattern.covers_address(address, port) for pattern in parsed)


def create_secret() -> str:
    """Return a new secret with 256 random bits, which needs no escaping in a URL."""
    return secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    """Return the digest of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def token_of(name: str, plane: Plane, secret: str, workers: Iterable[str] = (), models: Iterable[str] = ()) -> Token:
    """Return the token of a secret that a user has chosen.

    Raises InvalidInput, which quotes neither the secret nor the name: users may have swapped them.
    """
    if not MIN_LENGTH <= len(secret) <= _MAX_LENGTH or not _SECRET.match(secret):
        raise InvalidInput(
            "token",
            f"must have {MIN_LENGTH} to {_MAX_LENGTH} printable characters, without spaces and commas. "
            "`openssl rand -hex 32` prints a good one",
        )
    return Token(name, plane, digest_of(secret), tuple(workers), tuple(models))


def parse_list(text: str, plane: Plane) -> list[Token]:
    """Return the tokens of a plane in a text such as `gpu-1=SECRET,gpu-2=SECRET`. Raises InvalidInput."""
    tokens = []
    for number, part in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
        name, separator, secret = part.partition("=")
        if not separator:
            raise InvalidInput(f"token {number}", "lacks its name: write name=token")
        try:
            tokens.append(token_of(name.strip(), plane, secret.strip()))
        except InvalidInput as error:
            raise InvalidInput(f"{error.field} {number}", error.problem) from error
    return _distinct(tokens)


def parse_file(text: str) -> list[Token]:
    """Return the tokens in the text of a file, one at least. Raises InvalidInput, with the number of the wrong line.

    A line is `PLANE NAME SECRET [workers=PATTERN,...] [models=PATTERN,...]`. Empty lines, and lines that begin with #,
    are left out.
    """
    tokens = _distinct(list(_lines(text)))
    if not tokens:  # a program may be writing it just now
        raise InvalidInput("file", "has no token")
    return tokens


def parse_plane(text: str) -> Plane:
    """Return the plane of a token. Raises InvalidInput."""
    if text not in TOKEN_PLANES:
        raise InvalidInput("plane", "must be worker, client or admin")
    return Plane(text)


def _lines(text: str) -> Iterator[Token]:
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if parts and not parts[0].startswith("#"):
            try:
                yield _parse_line(parts)
            except InvalidInput as error:
                raise InvalidInput(f"line {number}: {error.field}", error.problem) from error


def _parse_line(parts: list[str]) -> Token:
    if len(parts) < 3:
        raise InvalidInput("line", "must be: plane name token")
    return token_of(parts[1], parse_plane(parts[0]), parts[2], **_bindings(parts[3:]))


def _bindings(parts: Iterable[str]) -> dict[str, list[str]]:
    bindings: dict[str, list[str]] = {}
    for part in parts:
        field, _, patterns = part.partition("=")
        if field not in ("workers", "models") or field in bindings or not patterns:
            raise InvalidInput("line", "may end with workers=PATTERN,... and models=PATTERN,... only")
        bindings[field] = patterns.split(",")
    return bindings


def _distinct(tokens: list[Token]) -> list[Token]:
    """Return the tokens. Raises InvalidInput if two have the same name or the same secret."""
    names, digests = set(), set()
    for number, token in enumerate(tokens, 1):
        if token.name in names or token.digest in digests:
            raise InvalidInput("token", f"number {number} has the name or the secret of an earlier one")
        names.add(token.name)
        digests.add(token.digest)
    return tokens


def encode_token(token: Token) -> str:
    """Return a token as JSON, without its name, as Redis stores it."""
    fields = {"plane": token.plane, "digest": token.digest, "workers": token.workers, "models": token.models}
    return json.dumps(fields, separators=(",", ":"))


def decode_token(name: str, text: str) -> Token:
    """Return the token that encode_token() has written. Raises InvalidInput if the text is something else."""
    try:
        fields: Mapping[str, list[str]] = json.loads(text)
        plane, digest = Plane(str(fields["plane"])), str(fields["digest"])
        return Token(name, plane, digest, tuple(fields["workers"]), tuple(fields["models"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInput("token", f"{name!r} is unreadable in Redis") from error
