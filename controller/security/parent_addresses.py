"""The parents of this cluster (`--parent`), with the credentials for them."""

import re
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote

from controller.domain.errors import InvalidInput, SettingsError
from controller.domain.worker import worker_name

_FORM: Final = "http://top:21001 or http://name:token@top:21001"
_CREDENTIALS: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%@-]*\Z")  # userinfo of RFC 3986, and @
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class ParentAddress:
    """A parent controller.

    address: without credentials, in the canonical form of a worker's name.
    authorization: value of the Authorization header for it. "" without credentials.
    secrets: the texts that must not be logged.
    """

    address: str
    authorization: str = field(default="", repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def without_secrets(self, text: str) -> str:
        """Return a text in which the credentials are replaced, for a log. The parent may have repeated them."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def parse_parent(text: str, flag: str = "--parent") -> ParentAddress:
    """Parse one address of a controller. Raises SettingsError, which does not quote credentials.

    flag: the name of the option that has the address.
    """
    scheme, slashes, rest = text.strip().partition("://")
    authority, slash, path = rest.partition("/")
    credentials, at, host = authority.rpartition("@")
    try:
        if not _CREDENTIALS.match(credentials):
            raise InvalidInput("parent", "has a name or a token with special characters")  # noqa: TRY301 - see below
        address = worker_name(f"{scheme}{slashes}{host}{slash}{path}")
    except InvalidInput as error:
        if "@" in text:  # the problem may quote a part of the token
            raise SettingsError(
                f"{flag} must be an address such as {_FORM}. Write special characters in the name and the token as "
                "in URLs: %2F for a slash, %40 for @, %2C for a comma."
            ) from None
        raise SettingsError(f"{flag} must be an address such as {_FORM}: {error.problem}.") from error
    if not at:
        return ParentAddress(address)
    name, colon, token = (unquote(part) for part in credentials.partition(":"))
    if not colon or not token or ":" in name or _CONTROL.search(name + token):
        raise SettingsError(
            f"{flag} has an @ without a name and a token before it. It must be an address such as {_FORM}."
        )
    encoded = b64encode(f"{name}:{token}".encode()).decode()
    written = credentials.partition(":")[2]
    return ParentAddress(address, f"Basic {encoded}", (encoded, token, written, quote(token, safe="")))
