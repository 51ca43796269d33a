"""Settings of the store: which Redis holds the registry, and what happens without it."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from controller.domain.errors import SettingsError
from controller.settings import checks
from controller.settings.declaration import Scope, setting
from controller.store_url import StoreKind, StoreUrl, parse_store_url, read_password_file

DEFAULT_DATA_DIR: Final = Path("controller-data")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_MAX_REDIS_TIMEOUT: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """The store, and the snapshot for its outages. Times are in seconds."""

    title: ClassVar = "Store"

    redis_url: str | None = setting(
        None,
        "The Redis that holds the registry: redis://host:6379/0, rediss://..., unix:///path, "
        "redis+sentinel://h1,h2,h3/master or redis+cluster://h1,h2 (rediss+... for TLS). The default, embedded://, "
        "starts a Valkey server with its data in --data-dir. If the URL has a password, use the environment variable.",
        has_password=True,
    )
    redis_password_file: Path | None = setting(
        None,
        "File with the password for --redis-url, which keeps it out of command lines and environments. Each new "
        "connection reads the file, so a changed password needs no restart.",
        scope=Scope.PROCESS,
    )
    data_dir: Path | None = setting(
        None,
        f"Data directory of the embedded store.  [default: ./{DEFAULT_DATA_DIR}]",
        scope=Scope.PROCESS,
    )
    namespace: str = setting(
        "controller", "Prefix of all keys. Clusters that share one Redis need different namespaces."
    )
    redis_timeout: float = setting(
        0.25,
        "Time limit for a call to Redis. If it is exceeded, dispatching continues from a snapshot until Redis is back.",
        scope=Scope.PROCESS,
    )
    snapshot_interval: float = setting(
        1.0,
        "How often the snapshot is taken. With thousands of workers it is taken less often.",
        scope=Scope.PROCESS,
    )
    register_timeout: float = setting(
        90.0,
        "How long a registration waits for Redis to come back before it fails with 503. The old name is "
        "--register-patience.",
        old_name="register_patience",
    )
    sweep_interval: float = setting(10.0, "How often expired workers are purged from the indexes.")

    def check_store(self) -> None:
        """Raise SettingsError if a value is wrong."""
        checks.positive_seconds(self, "redis_timeout", "snapshot_interval", "sweep_interval")
        checks.seconds(self, "register_timeout")
        if self.redis_timeout > _MAX_REDIS_TIMEOUT:
            raise SettingsError(f"--redis-timeout must be at most {_MAX_REDIS_TIMEOUT:g} s, not {self.redis_timeout}.")
        if not _NAMESPACE.match(self.namespace):
            raise SettingsError(
                "--namespace must have 1 to 64 characters: letters, digits, dots, colons, dashes and underscores."
            )
        if self.redis_url is not None and self.data_dir is not None:
            raise SettingsError(
                "--redis-url and --data-dir exclude each other: --data-dir is for the embedded store, which is not "
                "started if --redis-url is set. Remove one of the two."
            )
        self.store_url()

    def store_url(self) -> StoreUrl:
        """Return the store that the settings name. Raises SettingsError if the URL is wrong."""
        store = parse_store_url("embedded://" if self.redis_url is None else self.redis_url)
        if self.redis_password_file is None:
            return store
        if store.kind is StoreKind.EMBEDDED or store.password is not None:
            raise SettingsError(
                "--redis-password-file needs a --redis-url that names a server and has no password of its own."
            )
        read_password_file(self.redis_password_file)  # report a wrong path at the start, and not as an outage of Redis
        return replace(store, password_file=self.redis_password_file)
