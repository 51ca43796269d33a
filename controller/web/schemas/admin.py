"""The bodies of the routes for operators that FastChat's controller does not have."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from controller.dispatch.explanation import Explanation
from controller.domain.capacity import CapacityList, CapacityTarget, check_capacity
from controller.domain.errors import InvalidInput
from controller.domain.worker import model_name, worker_name
from controller.fleet.capacities import CapacityChange
from controller.fleet.replicas import ReplicaDescription
from controller.json_bodies import JsonBody
from controller.security.tokens import Plane, Token, parse_plane, token_name


class _CapacityBody(msgspec.Struct):
    capacity: int | float | None  # required, because a misspelt name must not remove a capacity
    worker_name: str | None = None
    model: str | None = None


class _TokenBody(msgspec.Struct):
    plane: str
    name: str
    workers: list[str] = []
    models: list[str] = []


class _TokenNameBody(msgspec.Struct):
    name: str


class NewToken(NamedTuple):
    """A request to create a token. Its secret is not known yet."""

    plane: Plane
    name: str
    workers: Sequence[str]
    models: Sequence[str]


_capacity: Final = JsonBody(_CapacityBody, "body", "Send capacity, which may be null, and either worker_name or model.")


_token: Final = JsonBody(_TokenBody, "body", "Send plane and name, and for a worker token workers and models.")
_token_name: Final = JsonBody(_TokenNameBody, "body", "Send the name of the token.")


def parse_token(body: bytes) -> NewToken:
    """Return a request to create a token."""
    request = _token.read(body)
    return NewToken(parse_plane(request.plane), request.name, request.workers, request.models)


def parse_token_name(body: bytes) -> str:
    """Return the name in a request to revoke a token."""
    return token_name(_token_name.read(body).name)


def tokens_body(tokens: Sequence[tuple[str, Token]]) -> dict[str, Any]:
    """Return the response body of GET `/tokens`. tokens: each with its source."""
    return {
        "tokens": [
            {
                "name": token.name,
                "plane": token.plane,
                "source": source,
                "workers": list(token.workers),
                "models": list(token.models),
            }
            for source, token in sorted(tokens, key=lambda each: (each[1].plane, each[1].name))
        ]
    }


def replicas_body(replicas: Sequence[ReplicaDescription]) -> dict[str, Any]:
    """Return the response body of GET `/replicas`."""
    return {"replicas": [replica._asdict() for replica in replicas]}


def explanation_body(explanation: Explanation) -> dict[str, Any]:
    """Return the response body of GET `/explain`."""
    return {
        "model": explanation.model,
        "method": explanation.method,
        "chosen": explanation.chosen or None,
        "workers": explanation.workers,
        "candidates": [
            {
                "worker_name": worker.name,
                "state": state,
                "cost": cost,
                "odds": odds,
                "queue_length": worker.requests,
                "leased": worker.leased,
                "capacity": worker.capacity,
                "speed": worker.speed,
            }
            for worker, state, cost, odds in explanation.candidates
        ],
        "excluded": [{"worker_name": name, "reason": "draining"} for name in explanation.draining],
    }


def parse_capacity(body: bytes) -> tuple[CapacityTarget, int | None]:
    """Return the target of a request to set a capacity, and the capacity. None removes it."""
    request = _capacity.read(body)
    if request.worker_name is not None and request.model is not None:
        raise InvalidInput("model", "must be left out if there is a worker_name. Send two requests to set both")
    if request.worker_name is not None:
        target = CapacityTarget(worker_name=worker_name(request.worker_name))
    elif request.model is not None:
        target = CapacityTarget(model=model_name(request.model))
    else:
        raise InvalidInput("worker_name", "is missing, and so is model. Send one of the two")
    return target, None if request.capacity is None else check_capacity(request.capacity)


def capacity_change_body(change: CapacityChange) -> dict[str, Any]:
    """Return the response body of `/set_capacity`."""
    return {"previous": change.before, "workers": change.workers}


def capacities_body(capacities: CapacityList) -> dict[str, Any]:
    """Return the response body of GET `/capacities`: first those of models, then those of workers."""
    return {
        "capacities": [
            {"worker_name": target.worker_name, "capacity": capacity}
            if target.worker_name
            else {"model": target.model, "capacity": capacity}
            for target, capacity in sorted(capacities.by_target.items())
        ]
    }
