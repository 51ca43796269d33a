"""Paths that are forwarded, and those for the management of engines, which never are."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from controller.domain.errors import SettingsError
from controller.security.forward_paths import DEFAULT, ForwardPaths, is_management
from controller.security.tokens import Plane
from controller.web.routes.table import ROUTES

EVERYTHING = "/*"
MANAGEMENT = [
    # vLLM
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/collective_rpc",
    "/server_info",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/start_profile",
    "/stop_profile",
    "/pause",
    "/resume",
    "/abort_requests",
    "/scale_elastic_ep",
    "/update_weights",
    "/init_weight_transfer_engine",
    "/load",
    "/metrics",
    # SGLang
    "/flush_cache",
    "/update_weights_from_disk",
    "/update_weights_from_distributed",
    "/update_weight_version",
    "/init_weights_update_group",
    "/get_weights_by_name",
    "/release_memory_occupation",
    "/resume_memory_occupation",
    "/abort_request",
    "/load_lora_adapter",
    "/load_lora_adapter_from_tensors",
    "/unload_lora_adapter",
    "/pause_generation",
    "/continue_generation",
    "/set_internal_state",
    "/configure_logging",
    "/open_session",
    "/hicache/storage-backend",
    # llama.cpp, Ollama, Triton, TensorRT-LLM, and others
    "/slots/0",
    "/props",
    "/lora-adapters",
    "/models/load",
    "/models/unload",
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/blobs/sha256-0",
    "/v2/repository/models/m/unload",
    "/v2/logging",
    "/v2/trace/setting",
    "/v2/models/m/trace/setting",
    "/prometheus/metrics",
    "/shutdown",
    "/internal/x",
    "/admin/x",
    "/debug/x",
]


def test_usual_paths_of_inference_are_forwarded_by_default() -> None:
    paths = ForwardPaths()
    for path in DEFAULT:
        assert paths.allows(path.replace("*", "x")), path
    for path in ("/v1/audio/transcriptions", "/v1/audio/speech", "/v1/images/generations"):
        assert paths.allows(path)


@pytest.mark.parametrize(
    "path", ["/", "/x", "/v1", "/v1/models", "/v1/chat", "/v1/chat/completions/x", "/v1/audio", ""]
)
def test_other_paths_are_not_forwarded_by_default(path: str) -> None:
    assert not ForwardPaths().allows(path)


def test_setting_replaces_the_default_or_adds_to_it() -> None:
    for paths, allowed, refused in (
        ("/my/path", ["/my/path"], ["/my/path/x", "/v1/rerank", "/my"]),
        ("/my/*, /x", ["/my/path", "/my/a/b", "/x"], ["/my", "/myx", "/v1/rerank"]),
        ("default,/my/*", ["/my/path", "/v1/rerank"], ["/x"]),
        (EVERYTHING, ["/my/path", "/v1/rerank", "/x"], ["/"]),
        ("", [], ["/v1/rerank", "/x"]),
        ("default,/x/,/my/*", ["/x/", "/my/x"], ["/x", "/my/", "/my/x/", "/v1/rerank/", "/v1/audio/speech/"]),
        (EVERYTHING, ["/x"], ["/x/", "/v1/rerank/"]),
    ):
        rule = ForwardPaths(paths)
        assert [path for path in allowed if not rule.allows(path)] == []
        assert [path for path in refused if rule.allows(path)] == []


@pytest.mark.parametrize("path", MANAGEMENT)
def test_management_is_never_forwarded(path: str) -> None:
    assert not ForwardPaths(EVERYTHING).allows(path)
    assert not ForwardPaths(EVERYTHING).allows(path.upper())
    assert not ForwardPaths(EVERYTHING).allows(f"{path}/")
    assert not ForwardPaths(EVERYTHING).allows(f"/prefix{path}") or path.startswith(("/api/", "/v2/logging"))
    with pytest.raises(SettingsError, match="which is for the management of an engine"):
        ForwardPaths(f"default,{path}")


@pytest.mark.parametrize("prefix", ["/internal/*", "/admin/*", "/v1/internal/*", "/api/pull/*", "/Sleep/*"])
def test_prefix_of_management_is_refused_at_the_start(prefix: str) -> None:
    with pytest.raises(SettingsError, match="which is for the management of an engine"):
        ForwardPaths(prefix)


def test_no_default_path_is_management() -> None:
    assert [path for path in DEFAULT if is_management(path.removesuffix("*"))] == []


def test_own_routes_of_workers_and_operators_are_management() -> None:
    """A worker may be another controller, so a client must not reach these routes of it through this one."""
    routes = [route.path for route in ROUTES if route.plane in (Plane.WORKER, Plane.ADMIN)]
    missing = [path for path in routes if not is_management(path)]
    assert missing == [], "add them to _MANAGEMENT in controller/security/forward_paths.py"


@pytest.mark.parametrize(
    "trick",
    [
        "//sleep",
        "/./sleep",
        "/x/../sleep",
        "/x/..//sleep",
        "/.sleep",
        "/..;/sleep",
        "/sleep;x=1",
        "/sleep;",
        "/sleep%00",
        "/sle%65p",
        "/%73leep",
        "/x%2fsleep",
        "/x%2Fsleep",
        "/sleep?x=1",
        "/sleep#x",
        "/sleep ",
        "/sleep\t",
        "/\\sleep",
        "/x\\..\\sleep",
        "/sleep\0",
        "/\u017fleep",
        "/\uff53leep",
        "/sleep\u200b",
        "sleep",
        "http://h/sleep",
        "/" + "a" * 128,
    ],
)
def test_path_with_more_than_one_spelling_is_not_forwarded(trick: str) -> None:
    assert not ForwardPaths(EVERYTHING).allows(trick)


_PARTS = st.sampled_from(
    ["sleep", "Sleep", "metrics", "x", "v1", ".", "..", "", "%2e", "%2f", ";", "a.b", "..;", "%00", "\\", "-", "_", "~"]
)


@given(st.lists(_PARTS, max_size=6).map("/".join).map("/{}".format) | st.text(max_size=30).map("/{}".format))
def test_path_that_is_checked_is_the_path_that_is_sent(path: str) -> None:
    if ForwardPaths(EVERYTHING).allows(path):
        url = URL(f"http://h:1{path}")  # what aiohttp makes of it
        assert (url.raw_path, url.raw_query_string, url.raw_fragment, url.raw_host) == (path, "", "", "h")
        assert not {"sleep", "metrics"} & set(path.lower().split("/"))


@pytest.mark.parametrize("path", ["x", "/x*", "/*/x", "/x/**", "/a//b", "/a/../b", "/a%20b", "/a?b", "/a;b", " ", "*"])
def test_invalid_path_is_refused_with_a_sentence(path: str) -> None:
    with pytest.raises(SettingsError, match=r"^--forward-paths must have paths such as .*\.$"):
        ForwardPaths(path)


def test_refused_paths_are_logged_once_and_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rule = ForwardPaths()
    for path in ("/x", "/x", "/sleep", "/bad path"):
        assert not rule.allows(path)
    assert [message.split(" for ", 1)[1].split(" gets")[0] for message in caplog.messages] == ["/x", "/sleep"]
    assert "--forward-paths lacks it" in caplog.messages[0]
    assert "it is for the management of an engine" in caplog.messages[1]
    for number in range(500):
        rule.allows(f"/x{number}")
    assert len(caplog.messages) == 100
