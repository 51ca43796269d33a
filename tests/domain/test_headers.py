"""The headers of a worker's response that reach the client."""

import pytest

from controller.domain.headers import Headers, end_to_end, is_encoded, trace_context, without_body

PASSED = [
    (b"content-encoding", b"gzip"),
    (b"location", b"/elsewhere"),
    (b"retry-after", b"3"),
    (b"x-model-id", b"7"),
    (b"x-name", b"caf\xe9"),
    (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
    (b"cache-control", b"no-store"),
]


PARENT = b"00-%s-%s-01" % (b"ab" * 16, b"cd" * 8)


@pytest.mark.parametrize(
    ("headers", "passed"),
    [
        ([], {}),
        ([(b"traceparent", PARENT)], {"traceparent": PARENT.decode()}),
        ([(b"traceparent", PARENT + b"-later")], {"traceparent": PARENT.decode() + "-later"}),
        ([(b"traceparent", PARENT), (b"traceparent", PARENT)], {}),
        ([(b"traceparent", PARENT.upper())], {}),
        ([(b"traceparent", PARENT + b" x")], {}),
        ([(b"traceparent", b"")], {}),
        ([(b"tracestate", b"a=1")], {}),
        (
            [(b"tracestate", b"a=1"), (b"traceparent", PARENT), (b"tracestate", b"b= 2\t")],
            {"traceparent": PARENT.decode(), "tracestate": "a=1,b= 2\t"},
        ),
        ([(b"traceparent", PARENT), (b"tracestate", b"a=\xe9")], {"traceparent": PARENT.decode()}),
        ([(b"traceparent", PARENT), (b"tracestate", b"a" * 8_001)], {"traceparent": PARENT.decode()}),
    ],
)
def test_a_valid_trace_context_is_passed_on_unchanged(
    headers: list[tuple[bytes, bytes]], passed: dict[str, str]
) -> None:
    assert trace_context(headers) == passed


def test_end_to_end_headers_are_passed_on_with_duplicates() -> None:
    sent = [*PASSED, (b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2")]
    passed = end_to_end(sent, 200)
    assert sorted(passed) == sorted((name.lower(), value) for name, value in sent)
    assert [value for name, value in passed if name == b"set-cookie"] == [b"a=1", b"b=2"]


@pytest.mark.parametrize(
    "name",
    [
        *("Connection", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade"),
        *("Proxy-Authenticate", "Proxy-Connection", "proxy-anything"),
        *("X-Request-Id", "X-Controller-Path", "x-controller-degraded", "X-Accel-Redirect", "X-Accel-Buffering"),
        *("", "a b", "a:b", "a\xe9"),
    ],
)
def test_hop_by_hop_headers_and_proxy_directives_are_removed(name: str) -> None:
    assert end_to_end([(name.encode("latin-1"), b"x"), (b"a", b"1")], 200) == ((b"a", b"1"),)


def test_headers_named_in_connection_are_removed() -> None:
    sent = [(b"Connection", b"close, X-Hop"), (b"connection", b"x-other"), (b"X-HOP", b"1"), (b"X-Other", b"2")]
    assert end_to_end([*sent, (b"X-End", b"3")], 200) == ((b"x-end", b"3"),)


@pytest.mark.parametrize(
    ("status", "length", "passed"),
    [(200, b"12", True), (200, b"+12", False), (200, b"1 2", False), (204, b"0", False), (304, b"12", False)],
)
def test_content_length_is_passed_on_if_it_is_valid_and_the_status_allows_a_body(
    status: int, length: bytes, passed: bool
) -> None:
    assert bool(end_to_end([(b"Content-Length", length)], status)) == passed


def test_control_characters_in_values_become_spaces() -> None:
    assert end_to_end([(b"x", b"a\r\nset-cookie: b\x00c\td")], 200) == ((b"x", b"a  set-cookie: b c\td"),)


def test_number_and_size_of_headers_are_limited_to_what_clients_accept() -> None:
    many = end_to_end([(b"x-%d" % i, b"1") for i in range(500)] + [(b"Content-Encoding", b"gzip")], 200)
    assert len(many) == 80
    assert many[0] == (b"content-encoding", b"gzip")
    large = end_to_end([(b"x-a", b"x" * 40_000), (b"x-b", b"y" * 7_000), (b"x-c", b"z" * 7_000), (b"x-d", b"1")], 200)
    assert [name for name, _ in large] == [b"x-b", b"x-d"]


@pytest.mark.parametrize(("size", "kept"), [(12 * 1024, True), (12 * 1024 + 1, False)])
def test_header_that_exceeds_the_size_of_all_headers_is_dropped(size: int, kept: bool) -> None:
    headers = ((b"x-a", b"1" * (6_000 - 3)), (b"x-b", b"2" * (size - 6_000 - 3)))
    assert end_to_end(headers, 200) == (headers if kept else headers[:1])


@pytest.mark.parametrize(("size", "kept"), [(8_000, True), (8_001, False)])
def test_header_that_clients_refuse_is_dropped_and_the_others_are_kept(size: int, kept: bool) -> None:
    headers = ((b"x-a", b"1"), (b"x-large", b"a" * (size - len("x-large"))), (b"x-b", b"2"))
    assert end_to_end(headers, 200) == (headers if kept else (headers[0], headers[2]))


@pytest.mark.parametrize(
    ("headers", "encoded"),
    [((), False), (((b"content-encoding", b"identity"),), False), (((b"content-encoding", b"br"),), True)],
)
def test_is_encoded_is_true_for_a_coding_other_than_identity(headers: Headers, encoded: bool) -> None:
    assert is_encoded(headers) == encoded


def test_without_body_removes_the_headers_that_describe_the_body() -> None:
    headers = ((b"content-type", b"a"), (b"content-encoding", b"gzip"), (b"etag", b"1"), (b"retry-after", b"3"))
    assert without_body(headers) == ((b"retry-after", b"3"),)
