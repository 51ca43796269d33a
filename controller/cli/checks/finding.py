"""The result of a check of `controller doctor`."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

_NAMED: Final = 3  # workers in a sentence


class Level(StrEnum):
    """The severity of a finding. UNKNOWN: the check could not be made."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(NamedTuple):
    """The result of one check.

    check: what was checked, in a word or two.
    found: what was found, and what it means.
    advice: what to do. "" if there is nothing to do.
    """

    level: Level
    check: str
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    """Return the finding that all is well."""
    return Finding(Level.OK, check, found)


def unknown(check: str, found: str, advice: str = "") -> Finding:
    """Return the finding that a check could not be made."""
    return Finding(Level.UNKNOWN, check, found, advice)


def warning(check: str, found: str, advice: str) -> Finding:
    """Return a finding that is not urgent."""
    return Finding(Level.WARNING, check, found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """Return a finding that needs action now."""
    return Finding(Level.PROBLEM, check, found, advice)


def some(names: Sequence[str]) -> str:
    """Return the first names, and how many others there are."""
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED:,} others"


def has_problem(findings: Iterable[Finding]) -> bool:
    """Return True if one of the findings is a problem."""
    return any(finding.level is Level.PROBLEM for finding in findings)
