"""Reference model of the rule that decides a worker's capacity: see lua/include/capacities/decide_capacity.lua."""

from collections.abc import Iterable, Mapping

from controller.domain.capacity import CapacityTarget


def effective_capacity(
    name: str,
    models: Iterable[str],
    reported: int | None,
    capacities: Mapping[CapacityTarget, int],
    default: int | None,
) -> tuple[int | None, str]:
    """Return the capacity of a worker and its source.

    capacities: set by operators.
    default: the capacity for its models according to the settings.
    """
    of_worker = capacities.get(CapacityTarget(worker_name=name))
    if of_worker is not None:
        return of_worker, "configured"
    if reported is not None:
        return reported, "reported"
    targets = [CapacityTarget(model=model) for model in models]
    capacity = min((capacities[target] for target in targets if target in capacities), default=default)
    return capacity, "" if capacity is None else "configured"
