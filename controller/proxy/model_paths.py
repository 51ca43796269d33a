"""Finds out through which other clusters this cluster reaches the models of its engines."""

from collections.abc import Iterable, Set

from controller.domain.hops import MAX_HOPS
from controller.domain.worker import Worker


def paths_of_models(workers: Iterable[Worker], asking: Set[str]) -> dict[str, str]:
    """Return the shortest hop list to an engine of each model, without this cluster: "" if the engine is its own.

    A path through a cluster that asks is left out, as in the routing protocol BGP. So the path to a dead engine cannot
    stay in a loop of clusters.

    asking: ids of the clusters that ask, and of this one. Empty if a client asks: the result is then empty, too.
    """
    found: dict[str, str] = {}
    for worker in workers if asking else ():
        if worker.engine is None or worker.draining:
            continue
        for model in worker.status.model_names:
            path = worker.engine.hops.get(model, "")
            clusters = path.split(",") if path else []
            if len(clusters) < MAX_HOPS and asking.isdisjoint(clusters):
                # Of equally long ones, each call returns the same, so that the asker sees no change.
                found[model] = min(path, found.get(model, path), key=lambda each: (len(each), each))
    return found
