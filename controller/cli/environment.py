"""Finds environment variables that begin with our prefix and that nothing reads. Most are typing errors."""

import re
from collections.abc import Iterable
from typing import Final

from controller.settings import all_settings
from controller.settings.declaration import environment_variables

_PREFIX: Final = "CONTROLLER_"
# Of the commands for a running controller, and of the files in deploy/.
_OTHERS: Final = (
    "CONTROLLER_ADDRESS",
    "CONTROLLER_TIMEOUT",
    "CONTROLLER_IMAGE",
    "CONTROLLER_MEMORY",
    "CONTROLLER_CPUS",
)
# Kubernetes sets these in all containers, if there is a Service named `controller` or `controller-...`.
_OF_KUBERNETES: Final = re.compile(
    r"CONTROLLER_(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP)(?:_\w+)?)\Z"
)


def unknown_variables(environment: Iterable[str]) -> list[tuple[str, str]]:
    """Return the variables that begin with CONTROLLER_ and that nothing reads, each with the likely right name or "".

    environment: the names of all variables.
    """
    import difflib  # imported late, so that --help stays fast

    known = [*_OTHERS, *(variable for setting in all_settings() for variable in environment_variables(setting))]
    names = [name.removeprefix(_PREFIX) for name in known if name.startswith(_PREFIX)]
    unknown = []
    for name in sorted(environment):
        if name.startswith(_PREFIX) and name not in known and not _OF_KUBERNETES.match(name):
            close = difflib.get_close_matches(name.removeprefix(_PREFIX), names, n=1, cutoff=0.75)
            unknown.append((name, f"{_PREFIX}{close[0]}" if close else ""))
    return unknown


def warnings_of(environment: Iterable[str]) -> list[str]:
    """Return a sentence about each unknown variable."""
    return [
        f"{name} is not a variable of the controller, so it has no effect."
        + (f" Did you mean {close}?" if close else "")
        for name, close in unknown_variables(environment)
    ]
