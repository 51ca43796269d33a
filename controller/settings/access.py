"""Access settings: the tokens and networks of each plane, and the address that others reach."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from controller.domain.errors import InvalidInput, SettingsError
from controller.security.access import AccessRules
from controller.security.networks import Networks
from controller.security.tokens import TOKEN_PLANES, Token, parse_file, parse_list
from controller.settings import checks
from controller.settings.declaration import Scope, environment_variable, flag, setting


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """The settings of tokens and networks."""

    title: ClassVar = "Access"

    worker_tokens: str | None = setting(
        None,
        "Tokens with which workers may register and send heartbeats: name=token. Separate several with commas. If any "
        "token or network is set, requests without the right to a route are refused.",
        secret=True,
    )
    client_tokens: str | None = setting(
        None, "Tokens for clients, to request workers and have requests forwarded: name=token, as above.", secret=True
    )
    admin_tokens: str | None = setting(None, "Tokens that allow everything: name=token, as above.", secret=True)
    tokens_file: Path | None = setting(
        None,
        "File with more tokens, one per line: worker|client|admin NAME TOKEN [workers=PATTERN,...] "
        "[models=PATTERN,...]. With patterns, a worker token is only valid for these workers and models. A changed "
        "file is read again.",
        scope=Scope.PROCESS,
    )
    worker_networks: str | None = setting(
        None, "Networks from which workers may register without a token, such as 10.0.0.0/8. Separate with commas."
    )
    client_networks: str | None = setting(
        None, "Networks from which clients may request workers, or send them requests, without a token."
    )
    admin_networks: str | None = setting(
        None,
        "Networks from which operators need no token for their routes. The routes of workers and clients are not "
        "included.",
    )
    satisfy: str = setting(
        "any",
        "Whether a token or a listed network is enough (any), or callers need both (all).",
        choices=("any", "all"),
    )
    trusted_proxies: str | None = setting(
        None,
        "Networks of load balancers whose header X-Forwarded-For is trusted. By default, the address of the connection "
        "counts.",
        scope=Scope.PROCESS,
    )
    insecure: bool = setting(
        False,
        "Serve other machines without tokens and networks. Everybody who reaches the port may then do everything.",
        scope=Scope.PROCESS,
    )
    published_host: str | None = setting(
        None,
        "Address at which a container engine or a load balancer publishes the port, such as 127.0.0.1:21001, if other "
        "machines can reach it only there. If it is a loopback address, --insecure is not needed.",
        scope=Scope.MACHINE,
    )

    @property
    def access_rules(self) -> AccessRules:
        """Return the rules of access. Raises SettingsError if a token or a network is wrong."""
        tokens: list[Token] = []
        for plane in TOKEN_PLANES:
            try:
                tokens += parse_list(getattr(self, f"{plane}_tokens") or "", plane)
            except InvalidInput as error:
                variable = environment_variable(f"{plane}_tokens")
                raise SettingsError(f"{variable} is wrong: {error}. No token is shown here.") from error
        if len({token.name for token in tokens}) < len(tokens) or len({token.digest for token in tokens}) < len(tokens):
            raise SettingsError("Two tokens have the same name or the same secret. Each needs its own.")
        networks = {plane: self._networks(f"{plane}_networks") for plane in TOKEN_PLANES}
        networks = {plane: listed for plane, listed in networks.items() if listed}
        return AccessRules(
            tokens,
            networks,
            needs_both=self.satisfy == "all",
            proxies=self._networks("trusted_proxies"),
            is_closed=bool(tokens or networks or self.tokens_file),
        )

    def _networks(self, name: str) -> Networks:
        try:
            return Networks(getattr(self, name) or "")
        except InvalidInput as error:
            message = f"{flag(name)} must be networks such as 10.0.0.0/8,fd00::/8: {error.problem}."
            raise SettingsError(message) from error

    def check_access(self) -> None:
        """Raise SettingsError if a value is wrong."""
        checks.one_of(self, "satisfy", ("any", "all"))
        if self.tokens_file is not None:
            try:
                parse_file(self.tokens_file.read_text())
            except (OSError, UnicodeDecodeError, InvalidInput) as error:
                raise SettingsError(f"--tokens-file {self.tokens_file} cannot be used: {error}") from error
        _ = self.access_rules
