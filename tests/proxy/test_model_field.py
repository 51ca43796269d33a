"""The name of the model is found in bodies of any form, and replaced without a change of other bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.domain.errors import InvalidInput
from controller.proxy import model_field
from controller.proxy.model_field import read_model

FORM = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("body", "renamed"),
    [
        (b'{"model":"m"}', b'{"model":"new"}'),
        (
            b' {\n"a" : [ {"model": "m"} ] , "model"\t:\r\n "m" }\n',
            b' {\n"a" : [ {"model": "m"} ] , "model"\t:\r\n "new" }\n',
        ),
        (b'{"model":"m","messages":[{"model":"m"},"model",{"a":{"model":"m"}}]}',) * 1
        + (b'{"model":"new","messages":[{"model":"m"},"model",{"a":{"model":"m"}}]}',),
        (b'{"x":"{\\"model\\":\\"m\\"}","model":"m"}', b'{"x":"{\\"model\\":\\"m\\"}","model":"new"}'),
        (b'{"x":"model","y":"\\\\","model":"m"}', b'{"x":"model","y":"\\\\","model":"new"}'),
        (b'{"mod\\u0065l":"m"}', b'{"mod\\u0065l":"new"}'),
        (b'{"model":"a","model":"m"}', b'{"model":"new","model":"new"}'),
        (b'{"model":"\\u006d"}', b'{"model":"new"}'),
        (b'{"x":"[{","model":"m","y":"}]"}', b'{"x":"[{","model":"new","y":"}]"}'),
        (b'{"x":1e400,"y":-0,"model":"m","z":1.10}', b'{"x":1e400,"y":-0,"model":"new","z":1.10}'),
        (b'{"x":NaN,"model":"m","y":"\\ud800"}', b'{"x":NaN,"model":"new","y":"\\ud800"}'),
        (b'\xef\xbb\xbf{"model":"m"}', b'\xef\xbb\xbf{"model":"new"}'),
    ],
)
def test_name_in_json_is_replaced_and_nothing_else(body: bytes, renamed: bytes) -> None:
    field = read_model(body)
    assert field.name == "m"
    assert field.renamed("m") is body
    assert field.renamed("new") == renamed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just("model"), inner, max_size=4),
    max_leaves=20,
)


@given(
    before=st.dictionaries(st.text(), JSON, max_size=4),
    after=st.dictionaries(st.text(), JSON, max_size=4),
    name=st.text(min_size=1),
    new=st.text(min_size=1),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
)
def test_any_json_has_only_the_name_replaced(
    before: dict[str, object], after: dict[str, object], name: str, new: str, ascii_only: bool, indent: int | None
) -> None:
    value = {**before, "model": name, **{key: each for key, each in after.items() if key != "model"}}

    def encoded(name: str) -> bytes:
        return json.dumps({**value, "model": name}, ensure_ascii=ascii_only, indent=indent).encode(
            errors="surrogatepass"
        )

    try:
        field = read_model(encoded(name))
    except InvalidInput:  # an unpaired surrogate
        assert any("\ud800" <= letter <= "\udfff" for letter in encoded(name).decode(errors="surrogatepass"))
        return
    assert field.name == name
    if ascii_only:  # as the controller writes a name
        assert field.renamed(new) == encoded(new)
    assert json.loads(field.renamed(new)) == {**value, "model": new}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"model":5}',
        b'{"model":null}',
        b'{"model":"m"',
        b'"model"',
        b'{"model":"\xff"}',
        b"a=b",
    ],
)
def test_body_without_a_name_is_invalid(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_model(body)


def test_json_in_another_encoding_is_read_but_not_changed() -> None:
    field = read_model('{"model":"m"}'.encode("utf-16"))
    assert field.name == "m"
    with pytest.raises(InvalidInput, match="must be in UTF-8"):
        field.renamed("new")


def test_json_with_any_number_of_values_is_searched() -> None:
    before = b'{"x":[' + b'["\\\\",{"model":"m"}],' * 200_000 + b'""],'
    field = read_model(before + b'"model":"m","y":"]"}')
    assert field.renamed("new") == before + b'"model":"new","y":"]"}'


@pytest.mark.parametrize("window", [1, 2, 7, 50])
def test_parts_that_are_searched_at_once_may_end_anywhere(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_field, "_WINDOW", window)
    text = r'{"a":"{\\\"[","b":[{"model":"m","c":"\\"}],"mo\u0064el":"m","x":"}","model" : "m","y":{"model":["model"]}}'
    renamed = text.replace('el":"m","x"', 'el":"new","x"').replace(' : "m"', ' : "new"')
    assert read_model(text.encode()).renamed("new") == renamed.encode()


def test_many_names_to_replace_are_invalid() -> None:
    """Each would be replaced, so a body of 32 MiB could become one of gigabytes."""
    body = b"{" + b'"model":"m",' * 99 + b'"x":[' + b'{"model":"m"},' * 1_000 + b'0],"model":"m"}'
    field = read_model(body)
    assert field.renamed("new").count(b"new") == 100
    field = read_model(body.replace(b"{", b'{"model":"m",', 1))
    assert field.renamed("m") is field.body
    with pytest.raises(InvalidInput, match="model: is in the body more than 100 times"):
        field.renamed("new")
    form = part("model", b"m") * 101 + b"--x--\r\n"
    with pytest.raises(InvalidInput, match="more than 100 times"):
        read_model(form, FORM).renamed("new")


def part(name: str, value: bytes, *more: str) -> bytes:
    lines = [f'Content-Disposition: form-data; name="{name}"{"".join(more)}', "Content-Type: text/plain"]
    return b"--x\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + value + b"\r\n"


FILE = part("file", b"\x00\xff\r\n--x-is-no-boundary\r\n\r\n--xy\r\nmodel", '; filename="model.wav"')


@pytest.mark.parametrize(
    ("parts", "renamed"),
    [
        ([part("model", b"m")], [part("model", b"new")]),
        ([FILE, part("model", b"m"), FILE], [FILE, part("model", b"new"), FILE]),
        ([part("model", b"a"), part("model", b"m")], [part("model", b"new"), part("model", b"new")]),
        ([part("model", b"x", '; filename="x"'), part("model", b"m")],) * 1
        + ([part("model", b"x", '; filename="x"'), part("model", b"new")],),
        ([part("models", b"x"), part("model", b"m")], [part("models", b"x"), part("model", b"new")]),
    ],
)
def test_name_in_a_form_is_replaced_and_nothing_else(parts: list[bytes], renamed: list[bytes]) -> None:
    field = read_model(b"".join(parts) + b"--x--\r\n", FORM)
    assert field.name == "m"
    assert field.renamed("new") == b"".join(renamed) + b"--x--\r\n"


@given(st.binary(max_size=300), st.binary(max_size=30))
def test_files_of_any_content_are_passed_over(content: bytes, value: bytes) -> None:
    if b"\r\n--x" in b"\r\n" + content + value:
        return
    body = part("file", content, '; filename="a"') + part("model", b"m") + part("other", value) + b"--x--\r\n"
    field = read_model(body, FORM)
    assert field.name == "m"
    assert field.renamed("new") == body.replace(part("model", b"m"), part("model", b"new"))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", FORM),
        (b"--x--\r\n", FORM),
        (part("model", b"m"), FORM),
        (part("model", b"m")[:-4], FORM),
        (part("model", b"") + b"--x--\r\n", FORM),
        (part("model", b"\xff") + b"--x--\r\n", FORM),
        (part("other", b"m") + b"--x--\r\n", FORM),
        (part("model", b"m") + b"--x--\r\n", "multipart/form-data"),
        (part("model", b"m") + b"--x--\r\n", f"multipart/form-data; boundary={'y' * 300}"),
        (part("model", b"m") + b"--x--\r\n", "multipart/form-data; boundary=x; a=\u20ac"),
        (part("a", b"m") * 1_001 + part("model", b"m") + b"--x--\r\n", FORM),
        (part("model", b"m") + part("file", b"\r\n--xy" * 10_000) + b"--x--\r\n", FORM),
        (b'{"model":"m"}', FORM),
    ],
)
def test_damaged_form_is_invalid_and_is_not_logged(
    body: bytes, content_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidInput):
        read_model(body, content_type)
    assert caplog.records == []


@pytest.mark.parametrize("letters", range(5))
def test_key_with_escapes_is_found(letters: int) -> None:
    escaped = "".join(f"\\u{ord(each):04X}" for each in "model"[:letters]) + "model"[letters:]
    body = f'{{"\\u006dode1": "x", "{escaped}": "m", "nested": {{"model": "n"}}}}'.encode()
    field = read_model(body)
    assert field.name == "m"
    assert json.loads(field.renamed("new")) == {"mode1": "x", "model": "new", "nested": {"model": "n"}}
