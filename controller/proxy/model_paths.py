"""Finds out through which other clusters this cluster reaches the models of its engines."""

from collections.abc import Collection, Iterable

from controller.domain.hops import MAX_HOPS
from controller.domain.worker import Worker


def paths_of_models(workers: Iterable[Worker], asking: Collection[str]) -> dict[str, str]:
    """Return the shortest hop list to an engine of each model, without this cluster. "" if an engine is its own.

    Each cluster leaves out the paths that lead through those that ask, as routers do (BGP). So the path to an engine
    that is gone cannot stay in a loop of clusters.

    asking: ids of the clusters that ask, and of this one. Empty if a client asks: the result is then empty, too.
    """
    found: dict[str, str] = {}
    for worker in workers if asking else ():
        if worker.engine is None or worker.draining:
            continue
        for model in worker.status.model_names:
            path = worker.engine.hops.get(model, "")
            clusters = path.split(",") if path else []
            is_loop = not set(clusters).isdisjoint(asking)
            if not is_loop and len(clusters) < MAX_HOPS and len(path) <= len(found.get(model, path)):
                found[model] = path
    return found
