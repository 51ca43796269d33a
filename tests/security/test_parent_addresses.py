"""Addresses of parents with credentials, which appear in no representation and no error."""

from base64 import b64decode
from urllib.parse import quote

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from controller.domain.errors import SettingsError
from controller.security.parent_addresses import parse_parent
from controller.settings import Settings


@pytest.mark.parametrize(
    ("text", "address", "credentials"),
    [
        ("http://top:21001", "http://top:21001", None),
        ("http://top:21001/a@b", "http://top:21001/a@b", None),
        ("http://region:T0ken@Top:21001/", "http://top:21001", b"region:T0ken"),
        ("https://region:a%2Fb%40c%2C%25@top", "https://top", b"region:a/b@c,%"),
        ("http://:T0ken@[fd00::1]:80", "http://[fd00::1]", b":T0ken"),
        ("http://a:b:c@top", "http://top", b"a:b:c"),
        ("http://a:b@c@top", "http://top", b"a:b@c"),
    ],
)
def test_credentials_are_split_from_the_address(text: str, address: str, credentials: bytes | None) -> None:
    parent = parse_parent(text)
    assert parent.address == address
    if credentials is None:
        assert parent.authorization == ""
    else:
        scheme, _, encoded = parent.authorization.partition(" ")
        assert (scheme, b64decode(encoded)) == ("Basic", credentials)


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=30))
def test_any_token_can_be_written_and_is_what_requests_would_send(token: str) -> None:
    text = f"http://region:{quote(token, safe='')}@top:21001"
    parent = parse_parent(text)
    assert parent.address == "http://top:21001"
    assert requests.Request("POST", text).prepare().headers["Authorization"] == parent.authorization


@pytest.mark.parametrize(
    "text",
    [
        "http://region:s3cret/x@top:21001",
        "http://region:s3cret@",
        "http://region:s3cret@top:x",
        "http://region:s3cret?@top",
        "http://region:s3cret#@top",
        "http://region:s3cret @top",
        "http://region:s3cret[@top",
        "region:s3cret@top:21001",
        "ftp://region:s3cret@top:21001",
        "http://s3cret@top",
        "http://region:s3cret%00@top",
        "http://re%3Agion:s3cret@top",
    ],
)
def test_invalid_parent_is_refused_without_showing_the_token(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_parent(text)
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cret" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_settings_and_parents_show_no_token() -> None:
    settings = Settings(parent="http://region:s3cret@top:21001", advertise="http://lb:1")
    assert settings.parents == ("http://top:21001",)
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in repr(settings.parent_addresses)
    assert "s3cret" not in str(settings.parent_addresses)


def test_texts_of_a_parent_are_shown_without_the_token() -> None:
    parent = parse_parent("http://region:s3%2Fcret@top")
    encoded = parent.authorization.partition(" ")[2]
    text = parent.without_secrets(f"bad header Basic {encoded}, token s3/cret or s3%2Fcret")
    assert text == "bad header Basic ***, token *** or ***"
