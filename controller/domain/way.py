"""The way of a request through controllers of controllers: the clusters it has passed, so that it goes in no circle."""

import re
from typing import Final

from controller.domain.errors import InvalidInput, LoopDetected

HEADER: Final = "x-controller-path"  # the ids of the clusters, with a comma between them
MAX_CLUSTERS: Final = 8
_WAY: Final = re.compile(r"[\w-]{1,64}(,[\w-]{1,64}){0,63}\Z", re.ASCII)


def passed(way: str, cluster: str) -> str:
    """The way of a request that has come by `way`, when it goes on from `cluster`; "" for one that comes from a client.

    Raises LoopDetected if it has been there before, or has passed too many; InvalidInput if that is no way.
    """
    if way and not _WAY.match(way):
        raise InvalidInput(HEADER, "must be ids of clusters with commas between them, as controllers send it")
    clusters = way.split(",") if way else []
    if cluster in clusters:
        raise LoopDetected(
            "This request has come back to a cluster that has forwarded it already: some cluster is registered as a "
            "worker below itself. Remove it there (POST /remove_worker)."
        )
    if len(clusters) >= MAX_CLUSTERS:
        raise LoopDetected(
            f"This request has passed {len(clusters)} clusters, and no more than {MAX_CLUSTERS} may stand below each "
            "other. Is one registered below itself by way of a stock FastChat controller?"
        )
    return ",".join([*clusters, cluster])
