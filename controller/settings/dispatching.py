"""Settings of the dispatch: how a worker is chosen, and how its load is counted."""

from dataclasses import dataclass
from typing import ClassVar

from controller.domain.capacity import DefaultCapacities, check_capacity
from controller.domain.checkpoints import MAX_IN_FLIGHT_WINDOW
from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import InvalidInput, SettingsError
from controller.domain.lease import MAX_LEASE_TIME
from controller.domain.worker import MAX_CAPACITY, model_name
from controller.settings import checks
from controller.settings.declaration import setting


@dataclass(frozen=True, kw_only=True)
class DispatchSettings:
    """The choice of a worker. Times are in seconds."""

    title: ClassVar = "Dispatch"

    dispatch_method: DispatchMethod = setting(
        DispatchMethod.SHORTEST_QUEUE,
        "How a worker is chosen: by the lowest queue_length / speed, or at random with odds proportional to speed.",
        choices=tuple(DispatchMethod),
    )
    booking_decay: str = setting(
        "on",
        "Whether the weight of a request without a lease decays with its age. With off, the request counts fully until "
        "the worker's next report, as in FastChat, and --booking-delay is 0.",
        choices=("on", "off"),
    )
    booking_delay: float = setting(
        0.2,
        "Assumed delay between a dispatch and its arrival at the worker (max 0.35 s). Reports do not replace bookings "
        "younger than this.",
    )
    lease_time: float = setting(600.0, "Default lease duration, used if the client requests none.")
    default_capacity: int = setting(
        0,
        "How many requests a worker runs at once, if neither the worker nor --capacity says so. 0 means unknown. "
        "FastChat's workers do not report their --limit-worker-concurrency, which is 5 by default.",
    )
    capacity: str | None = setting(
        None,
        "How many requests each worker of a model runs at once, if the worker does not report it: MODEL=N. Separate "
        "several with commas.",
    )

    @property
    def default_capacities(self) -> DefaultCapacities:
        """The capacities of --capacity and --default-capacity. Raises SettingsError if they are wrong."""
        return DefaultCapacities(_read_capacities(self.capacity or ""), self.default_capacity or None)

    def check_dispatch(self) -> None:
        """Make the dispatch method a DispatchMethod. Raise SettingsError if a value is wrong."""
        checks.one_of(self, "dispatch_method", tuple(DispatchMethod))
        object.__setattr__(self, "dispatch_method", DispatchMethod(self.dispatch_method))  # the command line has a text
        checks.one_of(self, "booking_decay", ("on", "off"))
        checks.seconds(self, "booking_delay")
        if self.booking_delay > MAX_IN_FLIGHT_WINDOW:
            raise SettingsError(
                f"--booking-delay must be at most {MAX_IN_FLIGHT_WINDOW:g} s, not {self.booking_delay}."
            )
        if not 0.001 <= self.lease_time <= MAX_LEASE_TIME:
            raise SettingsError(f"--lease-time must be from 0.001 to {MAX_LEASE_TIME:g} s, not {self.lease_time}.")
        if not 0 <= self.default_capacity <= MAX_CAPACITY:
            raise SettingsError(
                f"--default-capacity must be 0, for unknown, or at most {MAX_CAPACITY}, not {self.default_capacity}."
            )
        _ = self.default_capacities


def _read_capacities(text: str) -> dict[str, int]:
    """Return the capacities in the value of --capacity, by model. Raises SettingsError."""
    capacities: dict[str, int] = {}
    for part in text.split(",") if text else ():
        model, _, number = part.strip().rpartition("=")
        try:
            model_name(model)
            capacity = check_capacity(int(number))
        except (ValueError, InvalidInput) as error:
            raise SettingsError(
                f"--capacity must be MODEL=N, or several of these with commas, such as vicuna-7b=5,vicuna-13b=3. N is "
                f"from 1 to {MAX_CAPACITY}. This part is wrong: {part.strip()!r}."
            ) from error
        if model in capacities:
            raise SettingsError(f"--capacity has two values for the model {model!r}. Remove one of them.")
        capacities[model] = capacity
    return capacities
