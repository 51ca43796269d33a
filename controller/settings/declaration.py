"""Declares settings, and names their flags and environment variables."""

from collections.abc import Sequence
from dataclasses import Field, field
from enum import StrEnum
from typing import Any


class Scope(StrEnum):
    """The scope of a setting, which decides whether the replicas of a cluster may have different values."""

    CLUSTER = "cluster"  # decisions about the same workers and requests: all replicas need the same value
    PROCESS = "process"  # a replica and its connections: replicas with different values work, but behave differently
    MACHINE = "machine"  # its addresses, files and log level, which replicas on several machines need to differ


def setting(
    default: Any,
    text: str,
    *,
    also: Sequence[str] = (),
    choices: Sequence[str] = (),
    old_name: str | None = None,
    secret: bool = False,
    has_password: bool = False,
    scope: Scope = Scope.CLUSTER,
    unit: str = "s",
) -> Any:
    """Declare a setting.

    also: FastChat's environment variables for the same setting.
    old_name: a deprecated name. Its flag and environment variable still work, and `controller serve` logs a warning.
    secret: it has no flag, because all users of a machine can read command lines.
    has_password: the value may have a password in it.
    unit: of a default that is a float.
    """
    if old_name:
        also = [*also, environment_variable(old_name)]
    return field(
        default=default,
        repr=not (secret or has_password),
        metadata={
            "help": text,
            "also": tuple(also),
            "choices": tuple(choices),
            "old_name": old_name,
            "secret": secret,
            "scope": scope,
            "unit": unit,
        },
    )


def flag(name: str) -> str:
    """Return the command line flag of a setting."""
    return "--" + name.replace("_", "-")


def environment_variable(name: str) -> str:
    """Return our environment variable for a name."""
    return f"CONTROLLER_{name.upper()}"


def environment_variables(declared: "Field[Any]") -> list[str]:
    """Return the environment variables of a setting, in order of precedence."""
    return [environment_variable(declared.name), *declared.metadata["also"]]
