"""The span of a choice of a worker."""

from typing import Any, Final

from opentelemetry.trace import Span, Tracer

from controller.availability.snapshot import MaybeStale
from controller.dispatch.dispatcher import Assignment, Dispatcher

MODEL: Final = "gen_ai.request.model"  # as in the semantic conventions for generative AI
_WORKER: Final = "controller.worker"
_SNAPSHOT_AGE: Final = "controller.snapshot_age"
_MAX_TEXT: Final = 200  # characters of a model's name, which clients choose


class TracedDispatcher(Dispatcher):
    """A dispatcher whose choices are spans, with the model, the worker, and the age of a snapshot in seconds."""

    def __init__(self, tracer: Tracer, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._tracer = tracer

    async def dispatch(self, model: str, *arguments: Any) -> MaybeStale[str]:
        """Call Dispatcher.dispatch() in a span."""
        with self._tracer.start_as_current_span("choose", attributes=_attributes(model)) as span:
            found = await super().dispatch(model, *arguments)
            _describe(span, found.value, found.snapshot_age)
            return found

    async def dispatch_with_lease(self, model: str, *arguments: Any, **options: Any) -> MaybeStale[Assignment]:
        """Call Dispatcher.dispatch_with_lease() in a span."""
        with self._tracer.start_as_current_span("choose", attributes=_attributes(model)) as span:
            found = await super().dispatch_with_lease(model, *arguments, **options)
            _describe(span, found.value.address, found.snapshot_age)
            return found

    async def find_worker(self, model: str, *arguments: Any, **options: Any) -> MaybeStale[str]:
        """Call Dispatcher.find_worker() in a span."""
        with self._tracer.start_as_current_span("choose", attributes=_attributes(model)) as span:
            found = await super().find_worker(model, *arguments, **options)
            _describe(span, found.value, found.snapshot_age)
            return found


def _attributes(model: str) -> dict[str, str]:
    return {MODEL: model[:_MAX_TEXT]}


def _describe(span: Span, worker: str, snapshot_age: float | None) -> None:
    span.set_attribute(_WORKER, worker)
    if snapshot_age is not None:
        span.set_attribute(_SNAPSHOT_AGE, snapshot_age)
