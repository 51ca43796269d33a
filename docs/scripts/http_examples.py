"""One or more requests for each route, with their responses.

docs/scripts/reference.py writes them into the page about the HTTP API. tests/system/test_http_examples.py sends them,
in this order, to a controller with one worker, and compares the responses.
"""

import json
from typing import Any, Final, NamedTuple

CONTROLLER: Final = "http://localhost:21001"
WORKER: Final = "http://localhost:21002"
LEASE: Final = f"1795699720693-30000-4-2@{WORKER}"
# Fields whose values differ from run to run, in all examples. The test compares their types.
VARIABLE: Final = {"cost", "expires_in", "heartbeat_age", "lease", "queue_length", "stalled_for", "token"}
_LINE: Final = 88  # characters of a line that fit into the page


class Frames(NamedTuple):
    """The frames of a stream. A NUL byte ends each of them."""

    frames: list[dict[str, Any]]


class Text(NamedTuple):
    """Lines of a response that is not JSON, or of which only a part is shown."""

    lines: list[str]


class Example(NamedTuple):
    """A request to a path of the route table, and its response.

    sent_to: the path itself, if the table has a pattern.
    note: what the reader should know before reading.
    by_admin: the request has an admin token, and the controller requires one.
    """

    path: str
    body: Any = None
    response: Any = None
    status: int = 200
    sent_to: str = ""
    note: str = ""
    by_admin: bool = False

    @property
    def url_path(self) -> str:
        """The path of the request."""
        return self.sent_to or self.path


def shown(value: Any, indent: str = "", taken: int = 0) -> str:
    """Return a value as JSON: in one line, or in several if it is long. taken: characters before it in its line."""
    line = json.dumps(value)
    if taken + len(indent + line) <= _LINE or not isinstance(value, dict | list):
        return line
    deeper = indent + "  "
    if isinstance(value, list):
        items = [shown(item, deeper) for item in value]
    else:
        items = [f"{json.dumps(name)}: {shown(item, deeper)}" for name, item in value.items()]
    first, last = "[]" if isinstance(value, list) else "{}"
    return f"{first}\n{deeper}" + f",\n{deeper}".join(items) + f"\n{indent}{last}"


def as_console(example: Example, method: str) -> str:
    """Return the example as a curl command and its output."""
    credentials = "-u ops:$TOKEN " if example.by_admin else ""
    if example.body is not None:
        command = f"curl {credentials}{CONTROLLER}{example.url_path} -d"
        command = f"{command} '{shown(example.body, taken=len(command) + 5)}'"
    else:
        flag = "" if method == "GET" else f"-X {method} "
        command = f"curl {credentials}{flag}{CONTROLLER}{example.url_path}"
    if isinstance(example.response, Frames):
        lines = [json.dumps(frame) for frame in example.response.frames]
    elif isinstance(example.response, Text):
        lines = example.response.lines
    else:
        lines = [shown(example.response)]
    return "\n".join([f"$ {command}", *lines])


_NAME: Final = {"worker_name": WORKER}
_ECHO: Final = {"model": "echo", "prompt": "hello there"}


def _frame(text: str, tokens: int, finish_reason: str | None) -> dict[str, Any]:
    usage = {"prompt_tokens": 2, "completion_tokens": tokens, "total_tokens": 2 + tokens}
    return {"text": text, "error_code": 0, "usage": usage, "finish_reason": finish_reason}


EXAMPLES: Final = (
    Example(
        "/register_worker",
        {
            **_NAME,
            "check_heart_beat": True,
            "worker_status": {"model_names": ["echo"], "speed": 1, "queue_length": 0},
        },
    ),
    Example(
        "/register_engine",
        {**_NAME, "models": {"Qwen/Qwen3-8B": "qwen-8b"}},
        Text(['{"error":{"code":"worker_unreachable","message":"... does not answer as an engine: ..."}}']),
        status=502,
        note="If the URL is that of another server:",
    ),
    Example("/receive_heart_beat", {**_NAME, "queue_length": 0}, {"exist": True}),
    Example("/get_worker_address", {"model": "echo"}, {"address": WORKER}),
    Example(
        "/get_worker_address",
        {"model": "echo", "lease": 30},
        {"address": WORKER, "lease": LEASE},
        note="With a lease of 30 s:",
    ),
    Example("/get_worker_address", {"model": "unknown"}, {"address": ""}, note="If no live worker serves the model:"),
    Example("/renew_lease", {"lease": LEASE}, {"renewed": True}),
    Example("/release_worker", {"lease": LEASE}, {"released": True}),
    Example("/list_models", response={"models": ["echo"]}),
    Example("/list_multimodal_models", response={"models": []}),
    Example("/list_language_models", response={"models": ["echo"]}),
    Example(
        "/worker_generate_stream",
        _ECHO,
        Frames([_frame("hello", 1, None), _frame("hello there", 2, "stop")]),
        note="The frames are shown one to a line. A NUL byte ends each of them.",
    ),
    Example("/worker_generate", _ECHO, _frame("hello there", 2, "stop")),
    Example(
        "/worker_generate",
        {"model": "unknown", "prompt": "hello"},
        {
            "error": {"code": "no_worker", "message": "No live worker serves the model 'unknown'."},
            "text": "No live worker serves the model 'unknown'.",
            "error_code": 50005,
        },
        note="If no live worker serves the model:",
    ),
    Example(
        "/worker_get_embeddings",
        {"model": "echo", "input": ["aab", "b"]},
        Text(['{"embedding": [[0.6666666666666666, 0.3333333333333333, 0.0, ...], [0.0, 1.0, ...]], "token_num": 2}']),
    ),
    Example("/count_token", _ECHO, {"count": 2, "error_code": 0}),
    Example(
        "/worker_get_conv_template",
        {"model": "echo"},
        Text(['{"conv": {"name": "lines", "system_template": "{system_message}\\n", ...}}']),
    ),
    Example("/model_details", {"model": "echo"}, {"context_length": 2048}),
    Example(
        "*",
        {"model": "unknown", "prompt": "hello"},
        {
            "error": {
                "message": "The model 'unknown' does not exist. GET /v1/models lists the models.",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }
        },
        status=404,
        sent_to="/v1/rerank",
        note="If the model is unknown:",
    ),
    Example("/v1/models", response={"data": [], "object": "list"}, note="If no engine is registered:"),
    Example(
        "/v1/models/{model:path}",
        response={
            "error": {
                "message": "The model 'org/unknown' does not exist. GET /v1/models lists the models.",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }
        },
        status=404,
        sent_to="/v1/models/org/unknown",
        note="If no engine serves the model:",
    ),
    Example("/worker_get_status", response={"model_names": ["echo"], "speed": 1, "queue_length": 1}),
    Example(
        "/explain",
        response={
            "model": "echo",
            "served_model": "echo",
            "routed_to": [],
            "method": "shortest_queue",
            "chosen": WORKER,
            "workers": 1,
            "candidates": [
                {
                    "worker_name": WORKER,
                    "state": "free",
                    "cost": 0.82,
                    "odds": None,
                    "queue_length": 0.82,
                    "leased": 0,
                    "capacity": None,
                    "speed": 1.0,
                }
            ],
            "excluded": [],
        },
        sent_to="/explain?model=echo",
    ),
    Example(
        "/replicas",
        response=Text(
            ['{"replicas":[{"id":"...","name":"...","version":"...","started_at":...,"settings":{...,"port":...}}]}']
        ),
        note="An excerpt. `started_at` is in seconds since 1970.",
    ),
    Example("/engines", response={"engines": []}),
    Example("/report_failure", _NAME, {"exist": True}),
    Example("/set_capacity", {"model": "echo", "capacity": 4}, {"previous": None, "workers": 1}),
    Example("/capacities", response={"capacities": [{"model": "echo", "capacity": 4}]}),
    Example(
        "/set_model_route",
        {"model": "gpt-small", "targets": {"echo": 90, "echo-next": 10}, "fallbacks": ["echo-small"]},
        {"unserved": ["echo-next", "echo-small"]},
    ),
    Example(
        "/model_routes",
        response={
            "model_routes": [
                {
                    "model": "gpt-small",
                    "targets": {"echo": 90, "echo-next": 10},
                    "fallbacks": ["echo-small"],
                    "unserved": ["echo-next", "echo-small"],
                }
            ]
        },
    ),
    Example("/remove_model_route", {"model": "gpt-small"}, {"exist": True}),
    Example(
        "/create_token",
        {"plane": "worker", "name": "gpu-rack-1", "workers": ["10.0.1.0/24"], "models": ["vicuna-*"]},
        {"token": "WmhWi8Dmzq4d6Z0mXaFqRj0rjWkRUOPgbqkqwR4xWAo"},
        by_admin=True,
        note="With an admin token, see the [guide](../guides/access.md):",
    ),
    Example(
        "/tokens",
        response={
            "tokens": [
                {"name": "ops", "plane": "admin", "source": "environment", "workers": [], "models": []},
                {
                    "name": "gpu-rack-1",
                    "plane": "worker",
                    "source": "store",
                    "workers": ["10.0.1.0/24"],
                    "models": ["vicuna-*"],
                },
            ]
        },
        by_admin=True,
    ),
    Example("/revoke_token", {"name": "gpu-rack-1"}, {"exist": True}, by_admin=True),
    Example("/drain_worker", _NAME, {"exist": True, "drained": False}),
    Example(
        "/workers",
        response={
            "workers": [
                {
                    "worker_name": WORKER,
                    "model_names": ["echo"],
                    "speed": 1,
                    "queue_length": 1,
                    "leased": 0,
                    "capacity": 4,
                    "capacity_source": "configured",
                    "draining": True,
                    "drained": False,
                    "failing": "request",
                    "polled": False,
                    "multimodal": False,
                    "check_heart_beat": True,
                    "heartbeat_age": 12.408,
                    "expires_in": 77.592,
                    "stalled_for": None,
                    "registered_by": None,
                    "engine": None,
                }
            ],
            "missing_models": [],
        },
    ),
    Example("/resume_worker", _NAME, {"exist": True}),
    Example(
        "/events",
        response=Text(
            [
                '{"id": "...", "time": ..., "kind": "worker_resumed", "worker": "http://localhost:...", '
                '"by": "no token from 127.0.0.1"}'
            ]
        ),
        note="An excerpt. [Events](events.md) lists all kinds.",
    ),
    Example(
        "/overview",
        response=Text(
            [
                '{"time":...,"seen_at":...,"replica":{"id":"...","name":"...","version":"..."},',
                '"degraded":null,"can_dispatch":true,"dispatch_method":"shortest_queue","stalled_after":60.0,',
                '"dispatches":{"scope":"cluster","per_second":[...]},"replicas":[...],"missing_engines":[],',
                '"missing_models":[],"parents":[],',
                '"workers":[{"worker_name":"http://localhost:...","model_names":["echo"],...}]}',
            ]
        ),
        note="An excerpt, without `Accept: text/event-stream`:",
    ),
    Example("/", response=Text(["<title>Controller</title>"]), note="An excerpt:"),
    Example(
        "/page/{file:path}",
        response=Text(['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">']),
        sent_to="/page/icon.svg",
        note="One of its files:",
    ),
    Example("/refresh_all_workers"),
    Example(
        "/diagnosis",
        response=Text(
            [
                '{"replica":{"id":"...","name":"...","version":"...","snapshot_age":...,',
                '"open_files":...,"open_files_limit":...,"clock_jump":null},',
                '"store":{"kind":"embedded","timeout":...,"unavailable":null,',
                '"facts":{"product":"valkey","version":"...","role":"master","connected_replicas":0,',
                '"memory_used":...,"memory_limit":0,"eviction_policy":"noeviction","evicted_keys":0,',
                '"append_only":true,"append_only_failed":false,"snapshots":"","snapshot_failed":false,',
                '"fork_time":...,"clients":...,"max_clients":...,"rejected_connections":0,',
                '"cached_scripts":...,"failed_event_writes":0,"clock_offset":...,"round_trip":...},"unknown":{}}}',
            ]
        ),
        note="The response is one line.",
    ),
    Example(
        "/metrics",
        response=Text(["controller_cluster_replicas 1.0", "..."]),
        note="An excerpt. [Metrics](metrics.md) lists them all.",
    ),
    Example("/test_connection", response="success"),
    Example("/healthz", response={"healthy": True}),
    Example("/readyz", response={"ready": True}),
    Example(
        "/openapi.json",
        response=Text(['{"openapi":"3.1.0","info":{"title":"controller-cluster",...']),
        note="An excerpt.",
    ),
    Example("/docs", response=Text(['<!DOCTYPE html><html lang="en">...']), note="An excerpt."),
    Example("/remove_worker", _NAME, {"exist": True}),
    Example(
        "/remove_worker",
        {"worker_name": "localhost:21002"},
        Text(['{"error":{"code":"invalid_input","message":"worker_name: ..."}}']),
        status=400,
        note="If the body is not acceptable:",
    ),
)
