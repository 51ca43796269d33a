"""The page at `/`, and the state of the cluster that it shows."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple

from starlette.responses import Response

from controller.domain.headers import Headers
from controller.fleet.overview import Update
from controller.web.asgi.endpoint import Answer
from controller.web.errors import error_body
from controller.web.routes.streams import EVENT_STREAM, FollowResponse, wants_events
from controller.web.services import Services

_TYPES: Final = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
# The names of workers and models are hostile input. So the page runs no script but its own files, and Trusted Types
# make the browser refuse HTML from a string, except the constant templates of lit-html.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types lit-html"
)
_HEADERS: Final[Headers] = (
    (b"content-security-policy", _POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


PAGES: Final = {"/": "index.html"}  # the file of each path. The links of a file are relative to `/`
_PIECE: Final = 64 * 1024  # bytes
# Files whose names have no version: the script that loads the others, and the icon, which other pages have, too.
_WITHOUT_VERSION: Final = ("start.js", "icon.svg")


class _File(NamedTuple):
    body: bytes
    content_type: bytes
    etag: bytes
    headers: Headers


def _read(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield the names and the contents of the files that belong to the page."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _read(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _TYPES:
            yield f"{prefix}{entry.name}", entry.read_bytes()


def _file(name: str, body: bytes, caching: bytes) -> _File:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'.encode()
    headers = ((b"cache-control", caching), *_HEADERS, (b"etag", etag))
    return _File(body, _TYPES[name.rpartition(".")[2]], etag, headers)


def _files() -> Iterator[tuple[str, _File]]:
    """Yield the pages by their path, and the other files by the rest of their path after `/page/`.

    Replicas of two versions may serve behind one address, during an upgrade. So the page names a digest of all its
    files in their paths, and a replica has only those of its own version. Otherwise a browser could get modules of two
    versions, which need not fit together.
    """
    bodies = dict(sorted(_read(files("controller.web") / "static")))
    whole = hashlib.sha256()
    for name, body in bodies.items():
        whole.update(f"{name} {hashlib.sha256(body).hexdigest()}\n".encode())
    version = whole.hexdigest()[:16]
    paths = {name: path for path, name in PAGES.items()}
    for name, body in bodies.items():
        if name in paths:
            yield paths[name], _file(name, body.replace(b"VERSION", version.encode()), b"no-cache")
        elif name in _WITHOUT_VERSION:  # a browser asks whether its copy is current
            yield name, _file(name, body, b"no-cache")
        else:
            yield f"{version}/{name}", _file(name, body, b"public, max-age=31536000, immutable")


_FILES: Final[dict[str, _File]] = dict(_files())


async def page(_: Services, file_name: str, known: bytes) -> Answer | Response:
    """Return the page for operators, or one of its files. These need no token, but the data of the page do.

    The response has an `ETag`. A request with this value in `If-None-Match` gets a 304 without a body. The paths of
    most files have a version, which is a digest of all of them. A replica has the files of its own version only.
    """
    file = _FILES.get(file_name)
    if file is None:
        problem = f"The page of this replica has no file {file_name}. A page of another version may have it."
        return Answer(error_body("not_found", problem), 404, headers=((b"cache-control", b"no-store"),))
    if known == b"*" or file.etag in (each.strip().removeprefix(b"W/") for each in known.split(b",")):
        return Response(status_code=304, headers={key.decode(): value.decode() for key, value in file.headers})
    return Answer(file.body, headers=file.headers, content_type=file.content_type)


async def overview(
    services: Services, _: Mapping[str, str], headers: Mapping[str, str], is_admitted: Callable[[], bool]
) -> Answer | Response:
    """Return the state of the cluster as this replica knows it: its workers, replicas, parents and dispatch rate.

    With the header `Accept: text/event-stream` the response continues with server-sent events. The first is the
    `state`. Each second follow the `changes`: new workers, the changed fields of others, the names of `removed` ones,
    and all other parts of the state. It ends when the replica ends, or when the token is revoked.

    Times are in seconds since 1970. The workers are as of `seen_at`. While Redis is unavailable, `degraded` is the
    reason, and the workers stay as they were. `stalled_since` is when `stalled_for` in GET `/workers` began.
    `per_second` has the dispatch rates of the last minute. In the lottery they are those of this controller only.
    """
    if not wants_events(headers):
        return Answer(await services.overview.state(), headers=((b"cache-control", b"no-store"),))
    updates = services.overview.follow()
    first = await anext(updates)  # raises TooManyFollowers before the response begins
    return FollowResponse(_pieces(first, updates, is_admitted), updates, EVENT_STREAM)


async def _pieces(
    first: Update, updates: AsyncGenerator[Update, None], is_admitted: Callable[[], bool]
) -> AsyncIterator[bytes | memoryview]:
    """Yield the updates in small pieces. Each waits until the client has read most of those before."""
    update: Update | None = first
    while update is not None and is_admitted():
        frame = memoryview(update.frame)
        for begin in range(0, len(frame), _PIECE):
            yield frame[begin : begin + _PIECE]
            await asyncio.sleep(0)  # so that other requests do not wait for all viewers
        update = await anext(updates, None)
