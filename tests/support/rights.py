"""The users of deploy/redis/users.acl, for tests that run with few rights."""

from dataclasses import replace
from pathlib import Path

from controller.store_url import StoreUrl, parse_store_url

ROOT = Path(__file__).parents[2]
USERS = ROOT / "deploy/redis/users.acl"
# The words in the file that deploy/redis/start.sh replaces by passwords. Here they are the passwords.
PASSWORDS = {"controller": "PASSWORD", "admin": "OPERATOR"}
KEYS = "~{controller}*"  # the keys of the namespace `controller`, to which the file limits the user
SET_INFO = " +client|setinfo"  # Redis 7.0 does not know it, and would not start


def write_users(path: Path, version: tuple[int, ...], *patterns: str) -> None:
    """Write the users to an ACL file for a version of Redis.

    patterns: of the keys that the user `controller` may access, instead of those of the namespace `controller`.
    """
    text = USERS.read_text()
    assert text.count(KEYS) == text.count(SET_INFO) == 1
    if patterns:
        text = text.replace(KEYS, " ".join(f"~{pattern}" for pattern in patterns))
    path.write_text(text if version >= (7, 2) else text.replace(SET_INFO, ""))


def as_user(url: str, user: str) -> StoreUrl:
    """Return the URL of a server as one of the users."""
    return replace(parse_store_url(url), username=user, password=PASSWORDS[user])
