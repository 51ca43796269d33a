"""The planes that the rules open, and the cache of accepted headers, which are decoded only once."""

import base64

import pytest

from controller.domain.errors import Unauthorized
from controller.security import access as module
from controller.security.access import Access, AccessRules
from controller.security.audit import Audit
from controller.security.credentials import secret_of
from controller.security.networks import Networks
from controller.security.tokens import TOKEN_PLANES, Plane, Token, digest_of

SECRET = "0123456789abcdef"
TOKEN = Token("web", Plane.CLIENT, digest_of(SECRET))


def caller(access: Access, user: str, secret: str = SECRET) -> str:
    """Return the name of the token of a request with these credentials."""
    header = b"Basic " + base64.b64encode(f"{user}:{secret}".encode())
    return access.authorize({"headers": [(b"authorization", header)], "client": ("10.0.0.1", 1)}, Plane.CLIENT).name


def test_accepted_headers_are_decoded_once_and_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may send any user name with its token, so one token has any number of headers."""
    decoded: list[bytes] = []

    def decode(header: bytes) -> str | None:
        decoded.append(header)
        return secret_of(header)

    monkeypatch.setattr(module, "_MAX_ACCEPTED_HEADERS", 3)
    monkeypatch.setattr(module, "secret_of", decode)
    access = Access(AccessRules(tokens=[TOKEN], is_closed=True), Audit([]))
    assert [caller(access, user) for user in ("a", "b", "c", "a", "b", "c")] == ["web"] * 6
    assert len(decoded) == 3
    for i in range(20):
        assert caller(access, f"user-{i}") == "web"
        assert len(access._accepted) <= 3


def test_header_of_a_revoked_token_is_refused_at_once() -> None:
    access = Access(AccessRules(is_closed=True), Audit([]))
    access.replace("store", [TOKEN])
    assert caller(access, "a") == caller(access, "a") == "web"
    access.replace("store", [])
    with pytest.raises(Unauthorized):
        caller(access, "a")


def test_refused_headers_are_not_kept() -> None:
    access = Access(AccessRules(tokens=[TOKEN], is_closed=True), Audit([]))
    for i in range(20):
        with pytest.raises(Unauthorized):
            caller(access, "a", f"wrong-secret-{i:04}")
    assert access._accepted == {}


def test_rules_open_the_planes_of_their_tokens_and_networks() -> None:
    rules = AccessRules([TOKEN], {Plane.WORKER: Networks("10.0.0.0/8")})
    assert [plane for plane in TOKEN_PLANES if rules.has_rule_for(plane)] == [Plane.WORKER, Plane.CLIENT]
    assert not AccessRules().has_rule_for(Plane.CLIENT)
