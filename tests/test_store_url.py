"""Store URLs: how they are parsed, and the errors for invalid ones."""

import pytest

from controller.domain.errors import SettingsError
from controller.store_url import StoreKind, StoreUrl, parse_store_url

S = StoreKind

GOOD = {
    "redis://h": StoreUrl(S.SINGLE, hosts=(("h", 6379),)),
    "redis://:secret@h:1/2": StoreUrl(S.SINGLE, hosts=(("h", 1),), password="secret", database=2),
    "redis://us%40er:p%2F%3Aw@h/": StoreUrl(S.SINGLE, hosts=(("h", 6379),), username="us@er", password="p/:w"),
    "rediss://[::1]:7": StoreUrl(S.SINGLE, tls=True, hosts=(("::1", 7),)),
    "unix:///run/redis%20x.sock": StoreUrl(S.SINGLE, path="/run/redis x.sock"),
    "redis+sentinel://a,b:1,[::2]/main": StoreUrl(
        S.SENTINEL, hosts=(("a", 26379), ("b", 1), ("::2", 26379)), master="main"
    ),
    "rediss+sentinel://u:p@a/ma%2Fin/3?sentinel_username=s&sentinel_password=t": StoreUrl(
        S.SENTINEL,
        tls=True,
        hosts=(("a", 26379),),
        username="u",
        password="p",
        database=3,
        master="ma/in",
        sentinel_username="s",
        sentinel_password="t",
    ),
    "redis+sentinel://u:p@[::1]:1,[::2]/main": StoreUrl(
        S.SENTINEL, hosts=(("::1", 1), ("::2", 26379)), username="u", password="p", master="main"
    ),
    "redis+cluster://[::1]:1,b": StoreUrl(S.CLUSTER, hosts=(("::1", 1), ("b", 6379))),
    "redis+cluster://a,b:1": StoreUrl(S.CLUSTER, hosts=(("a", 6379), ("b", 1))),
    "rediss+cluster://:p@a/0": StoreUrl(S.CLUSTER, tls=True, hosts=(("a", 6379),), password="p"),
    "embedded://": StoreUrl(S.EMBEDDED),
    "embedded:///var/lib/controller": StoreUrl(S.EMBEDDED, path="/var/lib/controller"),
}


@pytest.mark.parametrize("text", GOOD)
def test_valid_url_is_parsed(text: str) -> None:
    assert parse_store_url(text) == GOOD[text]


BAD = {
    "": "an unknown scheme",
    "h:6379": "an unknown scheme",
    "http://h": "an unknown scheme",
    "redisss://h": "an unknown scheme",
    "redis+other://h": "an unknown scheme",
    "redis://": "lacks a host",
    "redis://u:p@": "lacks a host",
    "redis://a,b": "names several hosts",
    "redis+sentinel://a,,b/m": "lacks a host",
    "redis+sentinel://a": "lacks the name of the master",
    "redis+sentinel://a/": "lacks the name of the master",
    "redis+sentinel://a/m/x": "an invalid database number",
    "redis+cluster://a/1": "must not name a database",
    "redis://h/0/1": "an invalid database number",
    "redis://h:0": "an invalid port",
    "redis://h:65536": "an invalid port",
    "redis://h:x": "an invalid host",
    "redis://h h": "a space or a control character",
    "redis://h\t": "a space or a control character",
    "redis://h#1": "must not have a fragment",
    "redis://[::1": "an invalid host",
    "redis://[.]": "an invalid host",
    "redis://[1.2.3.4]": "an invalid host",
    "redis+sentinel://a,[::::]/m": "an invalid host",
    "redis://:p\u2100@h": "is not a URL",
    "redis://h?db=1": "must not have query parameters",
    "redis+cluster://h?sentinel_password=x": "must not have query parameters",
    "redis+sentinel://h/m?socket_timeout=1": "must not have query parameters",
    "redis+sentinel://h/m?nonsense": "must not have query parameters",
    "unix:///s?db=1": "must not have query parameters",
    "unix://": "lacks the path of a socket",
    "unix://h/s": "three slashes",
    "embedded://h": "three slashes",
}


@pytest.mark.parametrize("text", BAD)
def test_invalid_url_is_an_error_that_names_the_fault(text: str) -> None:
    with pytest.raises(SettingsError, match=BAD[text]) as caught:
        parse_store_url(text)
    assert str(caught.value).startswith("--redis-url ")
    assert "It must look like redis://" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["redis://u:secret@h?x=secret", "redis+sentinel://u:secret@a", "redis://u:secret@h#1", "redis://:secret\u2100@h"],
)
def test_error_contains_no_secret(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_store_url(text)
    assert "secret" not in str(caught.value)


def test_repr_contains_no_secret() -> None:
    url = parse_store_url("redis+sentinel://u:secret@a/main?sentinel_password=secret")
    assert (url.password, url.sentinel_password) == ("secret", "secret")
    assert "secret" not in repr(url)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://u:p@h", "redis://h:6379"),
        ("rediss://u:p@[::1]:1/2", "rediss://[::1]:1/2"),
        ("redis+sentinel://u:p@a,b/main/3?sentinel_password=x", "redis+sentinel://a:26379,b:26379/main/3"),
        ("rediss+cluster://u:p@a", "rediss+cluster://a:6379"),
        ("unix:///s", "unix:///s"),
        ("embedded:///d", "embedded:///d"),
    ],
)
def test_str_contains_no_credentials(text: str, shown: str) -> None:
    assert str(parse_store_url(text)) == shown
