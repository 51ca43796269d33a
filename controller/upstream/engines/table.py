"""The questions for each kind of engine, and the routes that answer them.

To add a kind, add it to EngineKind and add a row here, with readers for its answers. The rows are in the order in which
an unknown engine is compared with them.

Questions of one topic are asked in their order, until one of them is answered: the newest route of an engine first, or
the one with the smallest answer. docs/reference/engines.md is generated from this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from controller.domain.engine_status import EngineKind
from controller.upstream.engines import answers
from controller.upstream.engines.gauges import Gauge, Gauges
from controller.upstream.engines.reading import Reader, anything


class Question(NamedTuple):
    """A route of an engine, and how its answer is read.

    lag: by how many seconds the load in the answer may be out of date.
    lag_at_start: the same, until the engine has reported a request. By default as `lag`.
    has_capacity: the answer has the capacity, too. Gauges have it if they name a gauge for it.
    """

    path: str
    read: Reader
    lag: float = 0.0
    lag_at_start: float = 0.0
    has_capacity: bool = False


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """The questions for a kind of engine.

    owned_by: value of `owned_by` in its list of models. "" if it has no value of its own.
    sign: a route that only this kind has, for engines that `owned_by` does not tell.
    health: any status other than 200 means that the engine is not ready.
    models, awake, load, capacity: see Reading.
    notes: what operators should know, in sentences.
    """

    title: str
    owned_by: str = ""
    sign: tuple[Question, ...] = ()
    health: tuple[Question, ...] = ()
    models: tuple[Question, ...] = (Question("/v1/models", answers.openai_models),)
    awake: tuple[Question, ...] = ()
    load: tuple[Question, ...] = ()
    capacity: tuple[Question, ...] = ()
    notes: str = ""


def _gauges(**names: tuple[str, ...]) -> Gauges:
    return Gauges(**{field: tuple(map(Gauge, found)) for field, found in names.items()})


def _triton(name: str, label: str, *values: str) -> tuple[Gauge, ...]:
    return tuple(Gauge(f"nv_trt_llm_{name}_metrics", {label: value}) for value in values)


_VLLM_GAUGES: Final = Gauges(
    running=(Gauge("vllm:num_requests_running"),),
    waiting=(Gauge("vllm:num_requests_waiting"),),
    full=(Gauge("vllm:num_requests_waiting_by_reason", {"reason": "capacity"}),),
    kv_use=(Gauge("vllm:kv_cache_usage_perc"), Gauge("vllm:gpu_cache_usage_perc")),
    awake=(Gauge("vllm:engine_sleep_state", {"sleep_state": "awake"}),),
    healthy=(Gauge("vllm:engine_healthy"),),
)

# Versions of SGLang differ in the prefix.
_SGLANG_GAUGES: Final = _gauges(
    running=("sglang:num_running_reqs", "sglang_num_running_reqs"),
    waiting=("sglang:num_queue_reqs", "sglang_num_queue_reqs"),
    kv_use=("sglang:token_usage", "sglang_token_usage"),
)

_LLAMACPP_GAUGES: Final = _gauges(
    running=("llamacpp:requests_processing",),
    waiting=("llamacpp:requests_deferred",),
    kv_use=("llamacpp:kv_cache_usage_ratio",),
)

_TGI_GAUGES: Final = _gauges(running=("tgi_batch_current_size",), waiting=("tgi_queue_size",))

_LMDEPLOY_GAUGES: Final = _gauges(
    running=("lmdeploy:num_requests_running",),
    waiting=("lmdeploy:num_requests_waiting",),
    kv_use=("lmdeploy:gpu_cache_usage_perc",),
)

_TRTLLM_GAUGES: Final = _gauges(
    running=("trtllm_num_requests_running",),
    waiting=("trtllm_num_requests_waiting",),
    kv_use=("trtllm_kv_cache_utilization",),
    capacity=("trtllm_max_num_active_requests",),
)

_TRITON_GAUGES: Final = Gauges(
    running=_triton("request", "request_type", "scheduled"),
    waiting=_triton("request", "request_type", "waiting"),
    active=_triton("request", "request_type", "active"),
    capacity=_triton("request", "request_type", "max"),
    kv_use=_triton("kv_cache_block", "kv_cache_block_type", "fraction"),
)

ENGINES: Final[Mapping[EngineKind, EngineSpec]] = {
    EngineKind.VLLM: EngineSpec(
        title="vLLM",
        owned_by="vllm",
        sign=(Question("/version", answers.version),),
        health=(Question("/health", anything),),
        awake=(Question("/is_sleeping", answers.is_sleeping),),
        load=(Question("/metrics", _VLLM_GAUGES, lag=6.0, lag_at_start=18.0),),
        capacity=(Question("/server_info?config_format=json", answers.vllm_config),),
        notes="`/load` is not asked: it returns 0 without `--enable-server-load-tracking`, and the number of one "
        "process with several API servers. `/server_info` exists only with `VLLM_SERVER_DEV_MODE=1`.",
    ),
    EngineKind.SGLANG: EngineSpec(
        title="SGLang",
        owned_by="sglang",
        sign=(Question("/server_info", answers.sglang_info), Question("/get_server_info", answers.sglang_info)),
        health=(Question("/health", anything),),
        load=(
            Question("/v1/loads?include=core,queues", answers.sglang_loads, lag=1.0, has_capacity=True),
            Question("/metrics", _SGLANG_GAUGES, lag=5.0),
        ),
        capacity=(Question("/server_info", answers.sglang_info), Question("/get_server_info", answers.sglang_info)),
        notes="`/health` generates one token on an idle server. `/metrics` needs `--enable-metrics`.",
    ),
    EngineKind.LLAMACPP: EngineSpec(
        title="llama.cpp",
        owned_by="llamacpp",
        sign=(Question("/props", answers.llamacpp_props),),
        health=(Question("/health", anything),),
        load=(Question("/metrics", _LLAMACPP_GAUGES), Question("/slots", answers.llamacpp_slots, has_capacity=True)),
        capacity=(Question("/props", answers.llamacpp_props),),
        notes="`/metrics` needs `--metrics`. Without it, the number of waiting requests is unknown while all slots "
        "are busy. A sleeping server is ready: the next request wakes it up. The router mode reports no load.",
    ),
    EngineKind.TGI: EngineSpec(
        title="TGI",
        sign=(Question("/info", answers.tgi_info),),
        health=(Question("/health", anything),),
        models=(Question("/info", answers.tgi_info, has_capacity=True), Question("/v1/models", answers.openai_models)),
        load=(Question("/metrics", _TGI_GAUGES, lag=1.0),),
        notes="The capacity is `--max-concurrent-requests`, beyond which TGI returns 429. The load is unknown until "
        "the first request.",
    ),
    EngineKind.OLLAMA: EngineSpec(
        title="Ollama",
        sign=(Question("/api/version", answers.version),),
        health=(Question("/api/version", answers.version),),
        notes="Ollama reports neither its load nor its capacity (`OLLAMA_NUM_PARALLEL`). It lists the models that it "
        "can load.",
    ),
    EngineKind.LMDEPLOY: EngineSpec(
        title="LMDeploy",
        owned_by="lmdeploy",
        health=(Question("/health", answers.lmdeploy_health),),
        awake=(Question("/is_sleeping", answers.is_sleeping),),
        load=(Question("/metrics", _LMDEPLOY_GAUGES, lag=10.0),),
        notes="The metrics are updated every 10 s. With `--max-concurrent-requests`, a full server answers no probe.",
    ),
    EngineKind.TRTLLM: EngineSpec(
        title="TensorRT-LLM (`trtllm-serve`)",
        owned_by="tensorrt_llm",
        health=(Question("/health", anything),),
        load=(Question("/prometheus/metrics", _TRTLLM_GAUGES, lag=2.0),),
        notes="The gauges need `return_perf_metrics` and `enable_iter_perf_stats`. `/metrics` is not asked: it returns "
        "each number only once.",
    ),
    EngineKind.TRITON: EngineSpec(
        title="Triton (OpenAI frontend)",
        owned_by="Triton Inference Server",
        health=(Question("/health/ready", anything),),
        load=(Question("/metrics", _TRITON_GAUGES, lag=1.0),),
        notes="Only the TensorRT-LLM backend reports its load. Register the port of the OpenAI frontend, because the "
        "port of KServe's protocol (`/v2`) has no OpenAI routes.",
    ),
    EngineKind.GENERIC: EngineSpec(
        title="another OpenAI server",
        notes="For example `transformers serve`. Its load and its capacity are unknown.",
    ),
}
