"""Capacities that operators configure: for a worker, for the workers of a model, or for all workers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from controller.domain.errors import InvalidInput
from controller.domain.worker import MAX_CAPACITY, Worker

MAX_CAPACITIES: Final = 10_000  # that can be set at runtime
_WORKER: Final = "worker:"
_MODEL: Final = "model:"


class CapacityTarget(NamedTuple):
    """The target of a capacity: one worker, or each worker that serves a model. The other name is ""."""

    worker_name: str = ""
    model: str = ""

    @property
    def key(self) -> str:
        """The target as one text, which the store uses."""
        return _WORKER + self.worker_name if self.worker_name else _MODEL + self.model

    @classmethod
    def from_key(cls, key: str) -> "CapacityTarget":
        """Return the target with this key."""
        return cls(worker_name=key.removeprefix(_WORKER)) if key.startswith(_WORKER) else cls(model=key[len(_MODEL) :])

    def covers(self, worker: Worker) -> bool:
        """Return True if the target is the worker, or one of its models."""
        return worker.name == self.worker_name or self.model in worker.status.model_names


class CapacityList(NamedTuple):
    """The capacities that were set at runtime, by target. The version grows with each change."""

    version: int = 0
    by_target: Mapping[CapacityTarget, int] = {}


@dataclass(frozen=True, slots=True)
class DefaultCapacities:
    """The capacities that the settings give to workers which report none.

    by_model: for the workers of a model.
    default: for workers of other models. None if it is unknown.
    """

    by_model: Mapping[str, int] = field(default_factory=dict)
    default: int | None = None

    def of(self, models: Iterable[str]) -> int | None:
        """Return the capacity of a worker of these models: the smallest one for a model, or else the default."""
        return min((self.by_model[model] for model in models if model in self.by_model), default=self.default)


def check_capacity(capacity: float) -> int:
    """Return a capacity as a whole number. Raises InvalidInput if it is none, or out of bounds."""
    if not 1 <= capacity <= MAX_CAPACITY or capacity % 1:  # also rejects NaN
        raise InvalidInput("capacity", f"must be a whole number from 1 to {MAX_CAPACITY}")
    return int(capacity)
