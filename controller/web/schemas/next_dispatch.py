"""The body of a response that explains the next dispatch. The API document has the types and their descriptions."""

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Struct

from controller.dispatch.explanation import Explanation
from controller.domain.dispatch import DispatchMethod
from controller.json_bodies import described
from controller.web.schemas.fields import KnownWorker, ModelName


class CandidateWorker(Struct):
    """A worker that the next request may go to."""

    worker_name: KnownWorker
    state: Annotated[
        Literal["free", "full", "failing"],
        described("`free` workers come before `full` ones, and those before `failing` ones."),
    ]
    cost: Annotated[float | None, described("What is compared within a state. `null` in the lottery.", 0.82)]
    odds: Annotated[float | None, described("The probability of being drawn. `null` if nothing is drawn.")]
    queue_length: Annotated[float, described("The current estimate of running and waiting requests.", 0.82)]
    leased: Annotated[int, described("The number of active leases.", 0)]
    capacity: Annotated[int | None, described("How many requests it runs at once. `null` if that is unknown.", 8)]
    speed: Annotated[float, described("As registered.", 1)]


class ExcludedWorker(Struct):
    """A worker of the model that gets no requests."""

    worker_name: KnownWorker
    reason: Annotated[Literal["draining"], described("Why.")]


class NextDispatch(Struct):
    """The dispatch of the next request of a model."""

    model: ModelName
    served_model: Annotated[str, described("The model whose workers are listed: `model`, or one of its route.", "echo")]
    routed_to: Annotated[list[str], described("The models of the route of `model`. Empty if it has none.")]
    method: Annotated[str, described("The dispatch method of this replica.", enum=list(map(str, DispatchMethod)))]
    chosen: Annotated[
        str | None, described("The worker that it would get. `null` in the lottery, or if there is no worker.")
    ]
    workers: Annotated[int, described("The number of live workers that serve the model.", 1)]
    candidates: Annotated[list[CandidateWorker], described("The first workers that are compared, the best first.")]
    excluded: Annotated[list[ExcludedWorker], described("The others that serve the model.")]

    @classmethod
    def of(cls, model: str, explanation: Explanation, routed_to: Sequence[str]) -> "NextDispatch":
        """Return the body of an explanation. model: as requested. routed_to: the models of its route, if it has one."""
        return cls(
            model,
            explanation.model,
            list(routed_to),
            explanation.method,
            explanation.chosen or None,
            explanation.workers,
            [
                CandidateWorker(
                    worker.name,
                    state,  # type: ignore[arg-type]  # one of the three
                    cost,
                    odds,
                    worker.requests,
                    worker.leased,
                    worker.capacity,
                    worker.speed,
                )
                for worker, state, cost, odds in explanation.candidates
            ],
            [ExcludedWorker(name, "draining") for name in explanation.draining],
        )
