"""The kinds of engines, such as vLLM and llama.cpp, and the state that an engine reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

# The reason that an agent names when it drains its engine. The agent's next registration ends such a drain.
AGENT_ENDS: Final = "its agent ends"


class EngineKind(StrEnum):
    """The kind of an engine. It decides which routes are asked for the state of the engine."""

    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMACPP = "llamacpp"
    TGI = "tgi"
    OLLAMA = "ollama"
    LMDEPLOY = "lmdeploy"
    TRTLLM = "trtllm"
    TRITON = "triton"
    GENERIC = "generic"


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model that an engine serves, or an adapter (LoRA) that it lists as one.

    name: the value of `model` in a request.
    max_length: largest number of tokens of a prompt and its completion. None if the engine does not say.
    hops: hop list (controller/domain/hops.py) of the clusters that a request for the model passes, from the first to
        the last. "" if it passes none, or if the asker is not a controller.
    """

    name: str
    max_length: int | None = None
    hops: str = ""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The state that an engine reports. None means that the engine does not report a value, which is not the same as 0.

    models: the listed models, in the order of the engine.
    not_ready: why it should get no requests, as a sentence without its end. "" if it is ready.
    running: number of requests that it generates for.
    waiting: number of requests that wait inside the engine.
    full: True if a request waits because the engine has no room for it.
    kv_use: used part of its KV cache, from 0 to 1.
    capacity: number of requests that it runs at once, or accepts.
    lag: by how many seconds `running` and `waiting` may be out of date. A request that was dispatched less than this
        time before may be missing in them.
    """

    models: tuple[EngineModel, ...] = ()
    not_ready: str = ""
    running: int | None = None
    waiting: int | None = None
    full: bool | None = None
    kv_use: float | None = None
    capacity: int | None = None
    lag: float = 0.0

    @property
    def ready(self) -> bool:
        """True if the engine serves requests now."""
        return not self.not_ready

    @property
    def queue_length(self) -> int | None:
        """Number of running and waiting requests. None if one of the two is unknown."""
        if self.running is None or self.waiting is None:
            return None
        return self.running + self.waiting


@dataclass(frozen=True, slots=True)
class AgentReport:
    """The report of an agent when it registers its engine.

    queue_length: None if the engine does not say it.
    age: of the queue length, in seconds.
    capacity_learned: its capacity is learned from its load.
    max_lengths: as in Engine.
    problem: why it should get no requests, as a sentence. "" if it is ready.
    """

    queue_length: int | None
    age: float
    capacity_learned: bool
    max_lengths: Mapping[str, int]
    problem: str = ""


class LearnedCapacity:
    """Learns how many requests an engine runs at once from its own reports.

    The engine is full when a request waits although others run. The number of running requests is then its capacity.
    Long prompts need more memory, so the capacity changes: while the engine is full with fewer running requests, the
    learned value approaches that number, and half of the difference is gone after `half_life` seconds. It grows at
    once. The value stays as it is while the engine is not full. Otherwise, an idle night would lower the value, and the
    controller would never send enough requests again to correct it.
    """

    _MAX_STEP = 10.0  # seconds: longer gaps between two reports are not counted as time in which the engine was full

    def __init__(self, half_life: float = 600.0) -> None:
        self._half_life = half_life
        self._value: float | None = None
        self._full_at: float | None = None  # time of the last report, if the engine was full then

    @property
    def value(self) -> int | None:
        """The learned capacity. None if the engine was never full."""
        return None if self._value is None else round(self._value)

    def continue_from(self, value: int) -> None:
        """Begin with the value that another replica has learned, unless this one has learned a value itself."""
        if self._value is None:
            self._value = value

    def observe(self, status: EngineStatus, now: float) -> None:
        """Learn from a report of the engine.

        now: time of the report on a monotonic clock, in seconds.
        """
        running, full_at, self._full_at = status.running, self._full_at, None
        if not running:
            return  # unknown, or requests wait for something other than the running ones
        if self._value is not None and running > self._value:
            self._value = running
        if not status.full:
            return
        self._full_at = now
        if self._value is None:
            self._value = running
        elif full_at is not None:
            step = min(max(now - full_at, 0.0), self._MAX_STEP)
            self._value = running + (self._value - running) * 0.5 ** (step / self._half_life)
