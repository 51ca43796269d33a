"""The hop list of a request: the clusters that have forwarded it, so that forwarding loops are detected.

The header works like HTTP's `Via`, with the random ids of clusters in it.
"""

import re
from typing import Final

from controller.domain.errors import InvalidInput, LoopDetected

HEADER: Final = "x-controller-path"  # ids of clusters, separated by commas
MAX_HOPS: Final = 8
_HOPS: Final = re.compile(r"[\w-]{1,64}(,[\w-]{1,64}){0,63}\Z", re.ASCII)


def append_hop(hops: str, cluster: str) -> str:
    """Return the hop list of a request that `cluster` forwards. `hops` is "" if a client sent the request.

    Raises LoopDetected if the cluster is in the list already, or the list is full, and InvalidInput if `hops` is not a
    hop list.
    """
    if hops and not _HOPS.match(hops):
        raise InvalidInput(HEADER, "must be the ids of clusters, separated by commas, as controllers send it")
    clusters = hops.split(",") if hops else []
    if cluster in clusters:
        raise LoopDetected(
            "This request came back to a cluster that had forwarded it: a cluster is registered as a worker below "
            "itself. Remove that registration (POST /remove_worker)."
        )
    if len(clusters) >= MAX_HOPS:
        raise LoopDetected(
            f"This request has passed {len(clusters)} clusters. At most {MAX_HOPS} may be stacked. Check whether a "
            "cluster is registered below itself through a stock FastChat controller, which drops the hop list."
        )
    return ",".join([*clusters, cluster])


def is_hop_list(text: str) -> bool:
    """Return True if a text is a hop list of at least one cluster."""
    return bool(_HOPS.match(text))


def hop_headers(hops: str, cluster: str) -> dict[str, str]:
    """Return the header with the hop list of a request that `cluster` forwards. Raises as append_hop()."""
    return {HEADER: append_hop(hops, cluster)}
