"""Decides whether a request may use a route: by its token, by its address, or by both."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Any, Final, NamedTuple

from controller.domain.errors import Forbidden, Unauthorized
from controller.security.audit import Audit, AuditEvent
from controller.security.credentials import secret_of
from controller.security.networks import Networks, caller_address
from controller.security.tokens import Plane, Token, digest_of

_AUTHORIZATION: Final = b"authorization"
_API_KEY: Final = b"x-api-key"  # Anthropic's clients send their key in it
_READS_API_KEY: Final = "controller.reads_api_key"  # in the scope of a request whose route accepts a token there
_MAX_ACCEPTED_HEADERS: Final = 4_096


class Caller(NamedTuple):
    """The sender of a request.

    plane: the plane of the token, or the plane that the address opens. ADMIN if the controller needs no tokens.
    address: IP address. "" if it is unknown.
    token: None if the request was accepted without one.
    """

    plane: Plane
    address: str
    token: Token | None = None

    @property
    def name(self) -> str:
        """The name of the token. "" without a token."""
        return self.token.name if self.token else ""

    def may_speak_for(self, worker: str) -> bool:
        """Return True if the caller may act for a worker."""
        return self.token is None or self.token.may_speak_for(worker)

    def check_worker(self, worker: str) -> None:
        """Raise Forbidden if the caller has no right to act for a worker."""
        if not self.may_speak_for(worker):
            raise Forbidden(
                f"The token {self.name} gives no right to act for the worker {worker}. Its patterns of workers are: "
                f"{', '.join(self.token.workers if self.token else ())}. Nothing was done."
            )

    def check_own_worker(self, worker: str) -> None:
        """Raise Forbidden unless the caller is an admin, or its token is bound to workers and this is one of them."""
        if self.plane is Plane.ADMIN:
            return
        if self.token is None or not self.token.workers:
            raise Forbidden(
                "This route needs an admin token, or a worker token that is bound to this worker by a pattern. "
                "Nothing was done."
            )
        self.check_worker(worker)

    def check_models(self, models: Iterable[str]) -> None:
        """Raise Forbidden if workers of the caller have no right to serve one of the models."""
        forbidden = self.token.forbidden_models(models) if self.token else []
        if forbidden:
            raise Forbidden(
                f"The token {self.name} does not allow workers to serve the model {forbidden[0]}. Its patterns of "
                f"models are: {', '.join(self.token.models if self.token else ())}. Nothing was done."
            )


@dataclass(frozen=True)
class AccessRules:
    """The access rules of the settings.

    tokens: from the environment.
    networks: for the planes that have an allow-list.
    needs_both: True if a plane with an allow-list needs a token, too. Otherwise one of the two is enough.
    proxies: networks of trusted proxies, whose X-Forwarded-For is used.
    is_closed: True if requests without a token and from unlisted addresses are refused.
    """

    tokens: Sequence[Token] = ()
    networks: Mapping[Plane, Networks] = field(default_factory=dict)
    needs_both: bool = False
    proxies: Networks = field(default_factory=Networks)
    is_closed: bool = False

    def has_rule_for(self, plane: Plane) -> bool:
        """Return True if the plane has an allow-list, or an environment token of exactly this plane."""
        return plane in self.networks or any(token.plane is plane for token in self.tokens)


class Access:
    """Decides who may use which plane, on one replica.

    The path of a request is not read here. Each route passes its own planes, so no spelling of a path bypasses
    the check.
    """

    def __init__(self, rules: AccessRules, audit: Audit) -> None:
        self._rules = rules
        self._audit = audit
        self._sources: dict[str, Sequence[Token]] = {"environment": rules.tokens}
        self._tokens: dict[str, Token] = {}  # by digest
        # Tokens of headers that were accepted, by the SHA-256 of the header: decoding takes longer than hashing.
        self._accepted: dict[bytes, Token] = {}
        self._index()

    @property
    def is_closed(self) -> bool:
        """True if requests need a token or a listed address."""
        return self._rules.is_closed

    def replace(self, source: str, tokens: Sequence[Token]) -> None:
        """Replace the tokens of a source: "file" or "store"."""
        self._sources[source] = tuple(tokens)
        self._index()

    def token_named(self, name: str) -> Token | None:
        """Return the token with this name. None if there is no such token."""
        return next((token for token in self._tokens.values() if token.name == name), None)

    def tokens(self) -> list[tuple[str, Token]]:
        """Return all tokens, each with its source."""
        return [(source, token) for source, tokens in self._sources.items() for token in tokens]

    def authorize(self, scope: Any, plane: Plane, other_planes: Sequence[Plane] = ()) -> Caller:
        """Return the caller of a request for a route of `plane`.

        other_planes: further planes whose callers the route accepts. Its handler limits what they can do.

        Raises Unauthorized if the request has no valid token, and Forbidden if its token is for another plane, or needs
        a listed address.
        """
        address = self.address(scope)
        token = self.token(scope)
        for each in (plane, *other_planes):
            listed = address in self._rules.networks.get(each, _NO_NETWORKS)
            # An admin token is checked only by the rules of the route's own plane. Those of another plane may be less
            # strict: the other plane may have no allow-list.
            allows = token is not None and (token.allows(each) if each is plane else token.plane is each)
            if token is not None and allows and (listed or self.is_token_enough(each)):
                return Caller(token.plane, address, token)
            if listed and not self._rules.needs_both:
                return Caller(each, address)
        names = (_AUTHORIZATION, _API_KEY) if _READS_API_KEY in scope else (_AUTHORIZATION,)
        raise _refusal(plane, token, has_sent=any(name in names for name, _ in scope["headers"]))

    def is_token_enough(self, plane: Plane) -> bool:
        """Return True if a token opens a plane from every address."""
        return not self._rules.needs_both or plane not in self._rules.networks

    def address(self, scope: Any) -> str:
        """Return the IP address of the caller of a request. "" if it is unknown."""
        return caller_address(scope, self._rules.proxies)

    def token(self, scope: Any) -> Token | None:
        """Return the token of a request. None if it has none that is valid."""
        for name, value in scope["headers"]:
            if name == _AUTHORIZATION:
                key = hashlib.sha256(value).digest()
                token = self._accepted.get(key)
                if token is None:
                    token = self._look_up(value, key)
                if token is not None or _READS_API_KEY not in scope:
                    return token
                break
        return self._token_of_api_key(scope) if _READS_API_KEY in scope else None

    def _token_of_api_key(self, scope: Any) -> Token | None:
        for name, value in scope["headers"]:
            if name == _API_KEY:
                return self._token_with(value.strip().decode("utf-8", "surrogateescape"))
        return None

    def _token_with(self, secret: str) -> Token | None:
        digest = digest_of(secret)
        token = self._tokens.get(digest)
        return token if token is not None and compare_digest(token.digest, digest) else None

    def _look_up(self, header: bytes, key: bytes) -> Token | None:
        secret = secret_of(header)
        token = self._token_with(secret) if secret is not None else None
        if token is None:
            return None
        if len(self._accepted) >= _MAX_ACCEPTED_HEADERS:
            self._accepted.clear()
        self._accepted[key] = token
        return token

    def _index(self) -> None:
        tokens = (token for _, source in sorted(self._sources.items(), reverse=True) for token in source)
        self._tokens = {token.digest: token for token in tokens}
        self._accepted.clear()

    def record_refusal(self, scope: Any, error: Unauthorized | Forbidden) -> None:
        """Record in the audit log that a request was refused."""
        token, address = self.token(scope), self.address(scope)
        action = scope["path"].lstrip("/")[:100]
        self._audit.refuse(AuditEvent(action, "refused", token.name if token else "", address, detail=str(error)))


class Guard:
    """Decides who may use one route, as Access.authorize().

    reads_api_key: the route accepts a token in the header X-Api-Key, too.
    """

    def __init__(
        self, access: Access, plane: Plane, other_planes: Sequence[Plane] = (), *, reads_api_key: bool = False
    ) -> None:
        self._access = access
        self._plane = plane
        self._other_planes = other_planes
        self._reads_api_key = reads_api_key
        opened = {each for each in (plane, *other_planes) if access.is_token_enough(each)}
        self._by_token = frozenset(opened | {Plane.ADMIN} if plane in opened else opened)

    def admit(self, scope: Any) -> None:
        """Admit a request, or raise Unauthorized or Forbidden.

        This is on the hot path. Most requests have a token that is enough, so that case comes first and is cheap.
        """
        if self._reads_api_key:
            scope[_READS_API_KEY] = True
        token = self._access.token(scope)
        if token is not None and token.plane in self._by_token:
            scope["token"] = token
        else:
            scope["caller"] = self._access.authorize(scope, self._plane, self._other_planes)

    def caller(self, scope: Any) -> Caller:
        """Return the caller of an admitted request."""
        token: Token | None = scope.get("token")
        if token is None:
            caller: Caller = scope["caller"]
            return caller
        return Caller(token.plane, self._access.address(scope), token)

    def token_name(self, scope: Any) -> str:
        """Return the name of the token of an admitted request. "" without a token."""
        token: Token | None = scope.get("token")
        return token.name if token is not None else self.caller(scope).name

    def record_refusal(self, scope: Any, error: Unauthorized | Forbidden) -> None:
        """Record in the audit log that the guard or the handler of the route has refused a request."""
        self._access.record_refusal(scope, error)


def _refusal(plane: Plane, token: Token | None, *, has_sent: bool) -> Unauthorized | Forbidden:
    if token is None and has_sent:
        return Unauthorized(
            f"The token that was sent is unknown or revoked. This route needs a token of the plane {plane}. "
            "Nothing was done."
        )
    if token is None:
        return Unauthorized(
            f"This route needs a token of the plane {plane}, unless your address needs no token. Send the token as "
            "`Authorization: Bearer TOKEN`, or in the URL: http://name:TOKEN@host:port. Nothing was done."
        )
    if token.allows(plane):
        return Forbidden(
            f"The token {token.name} may be used from listed addresses only, and this one is not listed. Nothing was "
            "done."
        )
    return Forbidden(
        f"The token {token.name} is of the plane {token.plane}, and this route needs one of the plane {plane}. Nothing "
        "was done."
    )


_NO_NETWORKS: Final = Networks()
