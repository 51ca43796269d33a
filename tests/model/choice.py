"""Random calls. Their kinds and arguments are chosen so that they are likely to change the state of the model."""

import random
from collections.abc import Sequence
from typing import Final

from tests.model import calls, worker_calls
from tests.model.calls import Call, Dispatch
from tests.model.cluster import EXPIRATION, REPLICAS
from tests.model.state import State

NAMES: Final = [f"http://127.0.0.1:1/w{number}" for number in range(6)]
MODELS: Final = ["m", "n", "o"]
LEASES_MS: Final = [50_000, 250_000, 450_000]
NEVER_GRANTED: Final = "1800000000000-1-1-1@http://127.0.0.1:1/w0"


def any_call(rng: random.Random, state: State, leases: Sequence[str], in_flight: bool) -> Call:
    """Return a call on a random replica.

    leases: all leases that were granted so far.
    in_flight: True if bookings may be in flight when a report is written.
    """
    replica = rng.randrange(REPLICAS)
    name = rng.choice([*NAMES, *state.workers])
    lease_ms = rng.choice([0, 0, *LEASES_MS])
    lease = rng.choice([*leases[-20:], *sorted(state.orphans) * 3, NEVER_GRANTED])
    known = state.workers.get(name)
    checks = known.checks if known else rng.random() < 0.8
    multimodal = known.multimodal if known else rng.random() < 0.3
    models = tuple(rng.sample(MODELS, rng.choice([1, 1, 2, 3])))
    queue = rng.randrange(4)
    heartbeat = worker_calls.Heartbeat(replica, name, queue, EXPIRATION, in_flight, of_polls=rng.random() < 0.3)
    possible: list[tuple[float, Call]] = [
        (30, Dispatch(replica, rng.choice(MODELS), lease_ms)),
        (5, Dispatch(replica, rng.choice(MODELS), lease_ms, direct=True)),
        (5, Dispatch(replica, rng.choice(MODELS), lease_ms, lottery=True)),
        (12, calls.Release(replica, lease)),
        (4, calls.Renew(replica, lease)),
        (10, heartbeat),
        (3, worker_calls.ReportFailure(replica, name, of_polls=rng.random() < 0.4)),
        (4, worker_calls.Drain(replica, name, drain=rng.random() < 0.5)),
        (2, worker_calls.Remove(replica, name)),
        (2, worker_calls.Sweep(replica)),
        (2, calls.ListWorkers(replica)),
        (2, calls.ListModels(replica, rng.choice([None, True, False]))),
    ]
    if known is None or rng.random() < 0.3:
        possible.append((12, worker_calls.Register(replica, name, models, queue, checks, multimodal, EXPIRATION)))
    if known is not None and known.registration is not None:
        probe = worker_calls.Probe(replica, name, models, known.registration, checks, multimodal, EXPIRATION, in_flight)
        possible += [(4, probe), (2, worker_calls.Remove(replica, name, known.registration))]
    [call] = rng.choices([call for _, call in possible], [weight for weight, _ in possible])
    return call
