"""Reads the JSON answers of engines. Each function raises OtherShape if a text has another form."""

from typing import Any, Final

from controller.upstream.engines.reading import (
    OtherShape,
    Reading,
    capacity,
    count,
    field,
    parse_json,
    parse_object,
    share,
    total,
    usable_models,
)

_MAX_ENTRIES: Final = 10_000  # of a list: models, slots or ranks


def openai_models(body: bytes) -> Reading:
    """Read `/v1/models`. vLLM and SGLang tell the length in the model, llama.cpp in its `meta`.

    Another controller adds the hop list of each model.
    """
    models = [
        (field(model, "id"), field(model, "max_model_len") or field(model, "meta", "n_ctx"), field(model, "hops"))
        for model in _data(body)
    ]
    return Reading(models=usable_models(models))


def owners(body: bytes) -> set[str]:
    """Return the values of `owned_by` in `/v1/models`."""
    found = (field(model, "owned_by") for model in _data(body))
    return {owner for owner in found if isinstance(owner, str)}


def _data(body: bytes) -> list[Any]:
    answer = parse_object(body)
    if answer.get("object") == "list" and answer.get("data") is None:
        return []  # Ollama without models
    return _list(answer.get("data"))


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise OtherShape("lacks a list")
    if len(value) > _MAX_ENTRIES:
        raise OtherShape(f"has more than {_MAX_ENTRIES} entries")
    return value


def is_sleeping(body: bytes) -> Reading:
    """Read `/is_sleeping` of vLLM and LMDeploy."""
    asleep = parse_object(body).get("is_sleeping")
    if not isinstance(asleep, bool):
        raise OtherShape("lacks is_sleeping")
    return Reading(asleep=asleep)


def vllm_config(body: bytes) -> Reading:
    """Read `/server_info` of vLLM. The limit of running requests applies to each data-parallel engine."""
    config = parse_object(body).get("vllm_config")
    if not isinstance(config, dict):
        raise OtherShape("lacks vllm_config")
    limit = capacity(field(config, "scheduler_config", "max_num_seqs"))
    parallel = field(config, "parallel_config")
    if field(parallel, "data_parallel_external_lb"):
        engines = 1
    else:
        hybrid = field(parallel, "data_parallel_hybrid_lb")
        engines = field(parallel, "data_parallel_size_local" if hybrid else "data_parallel_size")
    return Reading(capacity=capacity(limit * (capacity(engines) or 1)) if limit else None)


def sglang_loads(body: bytes) -> Reading:
    """Read `/v1/loads` of SGLang, which has an entry for each data-parallel rank."""
    ranks = _list(parse_object(body).get("loads"))
    running, waiting, limit = (
        total(read(field(rank, name)) for rank in ranks)
        for name, read in (
            ("num_running_reqs", count),
            ("num_waiting_reqs", count),
            ("max_running_requests", capacity),
        )
    )
    uses = [use for rank in ranks if (use := share(field(rank, "token_usage"))) is not None]
    return Reading(
        running=count(running),
        waiting=count(waiting),
        full=None if waiting is None else waiting > 0,
        kv_use=max(uses) if ranks and len(uses) == len(ranks) else None,
        capacity=capacity(limit),
    )


def sglang_info(body: bytes) -> Reading:
    """Read `/server_info` of SGLang, which has a state for each data-parallel rank."""
    states = _list(parse_object(body).get("internal_states"))
    limits = (capacity(field(state, "effective_max_running_requests_per_dp")) for state in states)
    return Reading(capacity=capacity(total(limits)))


def llamacpp_slots(body: bytes) -> Reading:
    """Read `/slots` of llama.cpp. It does not count waiting requests, but none waits while a slot is free."""
    busy = [field(slot, "is_processing") for slot in _list(parse_json(body))]
    if not busy or not all(isinstance(one, bool) for one in busy):
        raise OtherShape("lacks the state of the slots")
    free = busy.count(False)
    return Reading(
        running=len(busy) - free,
        waiting=0 if free else None,
        full=False if free else None,
        capacity=capacity(len(busy)),
    )


def llamacpp_props(body: bytes) -> Reading:
    """Read `/props` of llama.cpp. A sleeping server is ready, because the next request wakes it up."""
    props = parse_object(body)
    if "total_slots" not in props:
        raise OtherShape("lacks total_slots")
    return Reading(capacity=capacity(props["total_slots"]))


def tgi_info(body: bytes) -> Reading:
    """Read `/info` of TGI. It refuses requests beyond `max_concurrent_requests` with 429."""
    info = parse_object(body)
    if not str(info.get("router")).startswith("text-generation-router"):
        raise OtherShape("is not TGI's")
    models = usable_models([(info.get("model_id"), info.get("max_total_tokens"), None)])
    return Reading(models=models, capacity=capacity(info.get("max_concurrent_requests")))


def lmdeploy_health(body: bytes) -> Reading:
    """Read `/health` of LMDeploy. Its status is 200 even while the engine is asleep. Old versions return no text."""
    if not body.strip():
        return Reading()
    return Reading(asleep=parse_object(body).get("status") == "sleeping")


def version(body: bytes) -> Reading:
    """Read `/version` or `/api/version`: a version and nothing else."""
    answer = parse_object(body)
    if answer.keys() != {"version"} or not isinstance(answer["version"], str):
        raise OtherShape("is not a version")
    return Reading()
