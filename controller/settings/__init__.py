"""All settings in one object: flags, environment variables, defaults and checks. Each module has one group."""

from dataclasses import Field, dataclass, fields
from typing import Any, Final

from controller.settings.access import AccessSettings
from controller.settings.affinity import AffinitySettings
from controller.settings.declaration import Scope
from controller.settings.dispatching import DispatchSettings
from controller.settings.hierarchy import HierarchySettings
from controller.settings.limits import LimitSettings
from controller.settings.server import ServerSettings
from controller.settings.store import StoreSettings
from controller.settings.workers import WorkerSettings


@dataclass(frozen=True, kw_only=True)
class Settings(
    ServerSettings,
    StoreSettings,
    WorkerSettings,
    DispatchSettings,
    AffinitySettings,
    AccessSettings,
    LimitSettings,
    HierarchySettings,
):
    """The settings of `controller serve`. Times are in seconds.

    Each field has the flag `--its-name` and the environment variable `CONTROLLER_ITS_NAME`. The command line is
    generated from these declarations. Raises SettingsError with a message that says what to change.
    """

    def __post_init__(self) -> None:
        self.check_server()
        self.check_store()
        self.check_workers()
        self.check_dispatch()
        self.check_affinity()
        self.check_access()
        self.check_limits()
        self.check_hierarchy()


GROUPS: Final[tuple[Any, ...]] = Settings.__bases__  # in the order of --help and of the reference page


def all_settings() -> tuple["Field[Any]", ...]:
    """Return the fields of Settings. Their metadata has `help`, `also`, `choices`, `old_name` and `scope`."""
    return tuple(setting for group in GROUPS for setting in fields(group))


def settings_of(scope: Scope) -> frozenset[str]:
    """Return the names of the settings with a scope."""
    return frozenset(setting.name for setting in all_settings() if setting.metadata["scope"] is scope)


def public_values(settings: Settings) -> dict[str, object]:
    """Return the values of the settings by name, ready for JSON. Settings that contain a secret are left out."""
    return {setting.name: _plain(getattr(settings, setting.name)) for setting in all_settings() if setting.repr}


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | float) else str(value)
