"""Names and patterns of workers on the command line."""

import re
from collections.abc import Sequence

from controller.domain.errors import ControllerUnreachable


def covered(known: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the known workers that the names and patterns cover, in the order of `names`.

    Raises ControllerUnreachable if one of them covers no worker.
    """
    found: dict[str, None] = {}
    for name in names:
        matching = [worker for worker in known if _covers(name.rstrip("/"), worker)]
        if not matching:
            raise ControllerUnreachable(f"No live worker is named {name}. `controller workers` lists them.")
        found.update(dict.fromkeys(matching))
    return list(found)


def _covers(pattern: str, worker: str) -> bool:
    """Return True if a pattern covers a worker, with the scheme or without it. Brackets belong to IPv6 addresses."""
    form = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return any(re.fullmatch(form, name, re.DOTALL) for name in (worker, worker.partition("://")[2]))
