"""Routes of model names: aliases, weighted splits and ordered fallbacks."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Final

from controller.domain.errors import InvalidInput
from controller.domain.worker import model_name

MAX_ROUTES: Final = 500
MAX_TARGETS: Final = 16
MAX_FALLBACKS: Final = 16
MAX_WEIGHT: Final = 10**6
_WEIGHT_RULE: Final = f"each weight must be a whole number from 0 to {MAX_WEIGHT}"


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """The models that serve the requests of a name.

    targets: the weight of each model. The requests are split by the weights. A model with weight 0 gets none.
    fallbacks: the models to try when no target has a live worker, in this order.

    All of them are names of served models and never of routes. So there are no loops, and a route for a served model
    may name this model as a target.

    Raises InvalidInput if a value is not allowed.
    """

    targets: Mapping[str, int]
    fallbacks: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.targets) <= MAX_TARGETS:
            raise InvalidInput("targets", f"must name 1 to {MAX_TARGETS} models, each with its weight")
        if len(self.fallbacks) > MAX_FALLBACKS or len(set(self.fallbacks)) < len(self.fallbacks):
            raise InvalidInput("fallbacks", f"must be at most {MAX_FALLBACKS} different models")
        _check_names("targets", self.targets)
        _check_names("fallbacks", self.fallbacks)
        if not all(type(weight) is int and 0 <= weight <= MAX_WEIGHT for weight in self.targets.values()):
            raise InvalidInput("targets", _WEIGHT_RULE)
        if not any(self.targets.values()):
            raise InvalidInput(
                "targets", "need a weight above 0. With all weights 0, no target would get requests. Remove the route"
            )

    @property
    def models(self) -> Sequence[str]:
        """The models that may get requests: targets with a weight above 0 and fallbacks, without duplicates."""
        return tuple(dict.fromkeys((*(name for name, weight in self.targets.items() if weight), *self.fallbacks)))

    def candidates(self, draw: Callable[[], float]) -> Sequence[str]:
        """Return the models to try for one request, in this order: the drawn target, other targets, fallbacks.

        draw: returns a random number, at least 0 and below 1.

        The targets are in random order. Each next one is drawn from the remaining targets, with a probability in
        proportion to its weight. So if a target has no live worker, the others share its requests by their weights.
        Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006). Logarithms of their keys
        are compared.
        """
        keys = {name: -log(1.0 - draw()) / weight for name, weight in self.targets.items() if weight}
        return tuple(dict.fromkeys((*sorted(keys, key=keys.__getitem__), *self.fallbacks)))

    def encode(self) -> str:
        """Return the route as Redis stores it."""
        fields = {"targets": dict(self.targets), "fallbacks": list(self.fallbacks)}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> "ModelRoute":
        """Return the route that encode() wrote. Raises InvalidInput if the text is something else."""
        try:
            fields = json.loads(text)
            targets, fallbacks = fields["targets"], fields["fallbacks"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidInput("route", "has a form that the controller does not write") from error
        if not isinstance(targets, dict) or not isinstance(fallbacks, list):
            raise InvalidInput("route", "has a form that the controller does not write")
        if not all(isinstance(name, str) for name in fallbacks):
            raise InvalidInput("route", "has a form that the controller does not write")
        return cls(targets, tuple(fallbacks))

    def __str__(self) -> str:
        targets = ", ".join(f"{name}={weight}" for name, weight in self.targets.items())
        return f"targets {targets}" + (f"; fallbacks {', '.join(self.fallbacks)}" if self.fallbacks else "")


def whole_weight(weight: float) -> int:
    """Return a weight as a whole number: JSON may have 90.0. Raises InvalidInput if it is none, or out of bounds."""
    if not 0 <= weight <= MAX_WEIGHT or weight % 1:  # also rejects NaN
        raise InvalidInput("targets", _WEIGHT_RULE)
    return int(weight)


def _check_names(field: str, names: Iterable[str]) -> None:
    for name in names:
        try:
            model_name(name)
        except InvalidInput as error:
            raise InvalidInput(field, f"each name {error.problem}") from error
