"""Workers to register, and who registers them."""

from collections.abc import Iterable

from controller.domain.worker import Registration, WorkerStatus
from controller.security.access import Caller
from controller.security.tokens import Plane
from controller.store.registry import Report, Request

A, B, C = (f"http://127.0.0.1:1/{name}" for name in "abc")  # no server listens there
OPERATOR = Caller(Plane.ADMIN, "127.0.0.1")


def worker(
    name: str,
    *models: str,
    speed: float = 1,
    queue_length: int = 0,
    check_heart_beat: bool = True,
    multimodal: bool = False,
    capacity: int | None = None,
) -> Registration:
    status = WorkerStatus(models or ("m",), speed, queue_length, capacity)
    return Registration(name, status, check_heart_beat, multimodal)


def asks(models: Iterable[str], lease_ms: int = 0) -> list[Request]:
    """Return a request for each model."""
    return [Request(model, lease_ms) for model in models]


def reports(queues: Iterable[tuple[str, int]]) -> list[Report]:
    """Return a report for each worker's name and queue length."""
    return [Report(*each) for each in queues]
