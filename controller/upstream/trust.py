"""The trusted certificates for https connections to workers, parents and other controllers.

REQUESTS_CA_BUNDLE, or else CURL_CA_BUNDLE, names a file or a directory that replaces the system's certificates.
FastChat does the same through `requests`. OpenSSL's SSL_CERT_FILE and SSL_CERT_DIR always apply.
"""

import contextlib
import functools
import logging
import os
import ssl
from pathlib import Path
from typing import Final

from controller.file_version import file_version

logger = logging.getLogger("controller")

_VARIABLES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def trusted() -> ssl.SSLContext | bool:
    """Return aiohttp's `ssl` argument: a context with the bundle, or True for the system's certificates.

    A bundle that cannot be used is ignored. See warn_of_bundle().
    """
    try:
        return _context() or True
    except (OSError, ValueError):
        return True


def warn_of_bundle() -> None:
    """Log a warning if a variable names a bundle that cannot be used.

    The controller starts anyway: the variable may be meant for other programs, and most workers use plain HTTP.
    """
    try:
        _context()
    except (OSError, ValueError) as error:
        variable, path = _bundle() or ("", "")
        logger.warning(
            "%s names %s, which cannot be used: %s. The system's certificates are trusted instead. Name a file of PEM "
            "certificates or a directory prepared by `openssl rehash`, or unset the variable.",
            variable,
            path,
            error,
        )


def _bundle() -> tuple[str, str] | None:
    return next(((name, path) for name in _VARIABLES if (path := os.environ.get(name))), None)


def _context() -> ssl.SSLContext | None:
    bundle = _bundle()
    if bundle is None:
        return None
    paths = bundle[1], os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    return _load(*paths, tuple(map(_version, paths)))


def _version(path: str | None) -> object:
    with contextlib.suppress(OSError, ValueError):
        return file_version(Path(path)) if path else None
    return None


@functools.lru_cache(maxsize=1)  # all certificates of a system take 20 ms to read, and each client needs them
def _load(path: str, other_file: str | None, other_directory: str | None, _versions: object) -> ssl.SSLContext:
    is_directory = Path(path).is_dir()
    context = ssl.create_default_context(capath=path) if is_directory else ssl.create_default_context(cafile=path)
    context.set_alpn_protocols(("http/1.1",))
    for kind, other in (("cafile", other_file), ("capath", other_directory)):
        if other:
            with contextlib.suppress(OSError):  # OpenSSL, too, ignores a path that it cannot use
                context.load_verify_locations(**{kind: other})
    return context
