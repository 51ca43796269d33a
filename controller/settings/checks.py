"""Checks that several settings share. Each raises SettingsError with a message that says what to change."""

from collections.abc import Collection
from typing import Final

from controller.domain.errors import SettingsError
from controller.settings.declaration import flag

_LONGEST: Final = 10_000_000  # seconds


def positive_seconds(settings: object, *names: str) -> None:
    """Check that the settings are numbers of seconds, from a millisecond to about four months."""
    for name in names:
        value = getattr(settings, name)
        if not 0.001 <= value <= _LONGEST:
            raise SettingsError(f"{flag(name)} must be from 0.001 to {_LONGEST:,} seconds, not {value}.")


def seconds(settings: object, *names: str) -> None:
    """Check that the settings are numbers of seconds, from 0 to about four months."""
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value <= _LONGEST:
            raise SettingsError(f"{flag(name)} must be from 0 to {_LONGEST:,} seconds, not {value}.")


def one_of(settings: object, name: str, choices: Collection[str]) -> None:
    """Check that a setting is one of the choices."""
    value = getattr(settings, name)
    if value not in choices:
        raise SettingsError(f"{flag(name)} must be one of {', '.join(choices)}, not {value}.")
