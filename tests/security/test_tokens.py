"""Tokens: how they are written, what they open, and that no message shows a secret."""

import pytest

from controller.domain.errors import InvalidInput
from controller.security.credentials import secret_of
from controller.security.tokens import (
    Plane,
    Token,
    create_secret,
    decode_token,
    digest_of,
    encode_token,
    parse_file,
    parse_list,
    token_of,
)

SECRET = "0123456789abcdef"


def test_lists_and_files_are_read() -> None:
    assert parse_list(f" a={SECRET}, b={SECRET}2==,", Plane.CLIENT) == [
        Token("a", Plane.CLIENT, digest_of(SECRET)),
        Token("b", Plane.CLIENT, digest_of(SECRET + "2==")),
    ]
    assert parse_list("", Plane.ADMIN) == []
    text = f"""
        # plane name token
        admin ops {SECRET}
        worker gpu-1 {SECRET}1 models=vicuna-*,m? workers=10.0.1.0/24:21002-21009,*.rack1.example
        client web {SECRET}2
    """
    assert parse_file(text) == [
        Token("ops", Plane.ADMIN, digest_of(SECRET)),
        Token(
            "gpu-1",
            Plane.WORKER,
            digest_of(SECRET + "1"),
            ("10.0.1.0/24:21002-21009", "*.rack1.example"),
            ("vicuna-*", "m?"),
        ),
        Token("web", Plane.CLIENT, digest_of(SECRET + "2")),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"root ops {SECRET}", "line 1: plane: must be worker, client or admin"),
        (f"public ops {SECRET}", "line 1: plane: must be worker, client or admin"),
        ("", "file: has no token"),
        ("# comment", "file: has no token"),
        ("\nadmin ops", "line 2: line: must be: plane name token"),
        (f"admin {SECRET} gpu-1", "line 1: token: must have 16 to 256 printable characters"),
        ("admin ops short-secret", "line 1: token: must have 16 to 256 printable characters"),
        (f"admin ops {SECRET}\x7f", "line 1: token: must have 16 to 256 printable characters"),
        (f"admin -ops {SECRET}", "line 1: name: must have 1 to 64 characters"),
        (f"admin ops {SECRET} workers=*", "line 1: workers: can be set for tokens of the plane worker only"),
        (f"worker w {SECRET} workers=10.0.1.*", "line 1: workers: has '10.0.1.*', but it is neither"),
        (f"worker w {SECRET} workers=10.0.1.x*", "line 1: workers: has '10.0.1.x*'"),
        (f"worker w {SECRET} workers=", "line 1: line: may end with workers=PATTERN"),
        (f"worker w {SECRET} speed=3", "line 1: line: may end with workers=PATTERN"),
        (f"admin a {SECRET}\nclient a {SECRET}2", "token: number 2 has the name or the secret of an earlier one"),
        (f"admin a {SECRET}\nclient b {SECRET}", "token: number 2 has the name or the secret of an earlier one"),
    ],
)
def test_wrong_lines_are_refused_without_the_secret(text: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_file(text)
    if "10.0.1" not in text:
        assert str(caught.value).startswith(problem)
    assert SECRET not in str(caught.value)
    assert "short-secret" not in str(caught.value)


def test_a_list_without_names_is_refused_without_the_secret() -> None:
    with pytest.raises(InvalidInput, match="lacks its name") as caught:
        parse_list(SECRET, Plane.ADMIN)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "worker", "covered"),
    [
        ("10.0.1.0/24", "http://10.0.1.7:21002", True),
        ("10.0.1.0/24", "http://10.0.2.7:21002", False),
        ("10.0.1.0/24", "http://10.0.1.7.attacker.example:21002", False),
        ("10.0.1.7", "http://10.0.1.7", True),
        ("10.0.1.7", "http://10.0.1.70", False),
        ("10.0.1.7:80", "http://10.0.1.7", True),
        ("10.0.1.7:80", "https://10.0.1.7", False),
        ("10.0.1.7:443", "https://10.0.1.7", True),
        ("10.0.1.7:21002-21009", "http://10.0.1.7:21009/deep/path", True),
        ("10.0.1.7:21002-21009", "http://10.0.1.7:21010", False),
        ("*.rack1.example", "http://gpu.rack1.example:1", True),
        ("*.rack1.example", "http://gpu.rack1.example.attacker.org:1", False),
        ("*.rack1.example", "http://rack1.example:1", False),
        ("[fd00::/8]", "http://[fd00::5]:1", True),
        ("[fd00::/8]", "http://[fe00::5]:1", False),
        ("*", "http://10.0.1.7:1", True),
        ("*", "http://gpu:1", True),
    ],
)
def test_a_bound_token_speaks_only_for_its_workers(pattern: str, worker: str, covered: bool) -> None:
    token = token_of("t", Plane.WORKER, SECRET, workers=["absent.example", pattern])
    assert token.may_speak_for(worker) is covered
    assert token_of("t", Plane.WORKER, SECRET).may_speak_for(worker), "without patterns it speaks for all"


def test_models_of_a_bound_token() -> None:
    token = token_of("t", Plane.WORKER, SECRET, models=["vicuna-*", "m?"])
    assert token.forbidden_models(["vicuna-7b", "m1", "gpt-4", "m", "VICUNA-7b"]) == ["gpt-4", "m", "VICUNA-7b"]
    assert token_of("t", Plane.WORKER, SECRET).forbidden_models(["gpt-4"]) == []


def test_an_admin_token_opens_all_planes_and_others_only_their_own() -> None:
    planes = (Plane.WORKER, Plane.CLIENT, Plane.ADMIN)
    opened = {plane: [each for each in planes if token_of("t", plane, SECRET).allows(each)] for plane in planes}
    assert opened == {
        Plane.WORKER: [Plane.WORKER],
        Plane.CLIENT: [Plane.CLIENT],
        Plane.ADMIN: [Plane.WORKER, Plane.CLIENT, Plane.ADMIN],
    }


def test_stored_tokens_are_read_back_and_have_no_secret() -> None:
    token = token_of("t", Plane.WORKER, SECRET, workers=["10.0.0.0/8"], models=["m*"])
    assert SECRET not in encode_token(token)
    assert decode_token("t", encode_token(token)) == token
    for text in ("", "[]", "{}", '{"plane":"root","digest":"d","workers":[],"models":[]}', "[" * 100_000, "NaN"):
        with pytest.raises(InvalidInput):
            decode_token("t", text)


def test_created_secrets_are_long_and_need_no_escaping_in_a_url() -> None:
    secrets = {create_secret() for _ in range(100)}
    assert len(secrets) == 100
    for secret in secrets:
        assert len(secret) == 43
        assert set(secret) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(
    ("header", "secret"),
    [
        (b"Bearer abc", "abc"),
        (b"bearer   abc ", "abc"),
        (b"Basic d29ya2VyOmFiYw==", "abc"),  # worker:abc
        (b"BASIC OmFiYzpk", "abc:d"),  # no name, and a colon in the password
        (b"Basic d29ya2Vy", None),  # worker
        (b"Basic !!!", None),
        (b"Basic", None),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"", None),
        (b"Digest abc", None),
        (b"Bearer " + b"a" * 5_000, None),
        (b"Bearer \xff\xfe", "\udcff\udcfe"),
    ],
)
def test_secrets_are_read_from_both_schemes(header: bytes, secret: str | None) -> None:
    assert secret_of(header) == secret
    if secret:
        digest_of(secret)  # any text has a digest


@pytest.mark.parametrize(("length", "accepted"), [(15, False), (16, True), (256, True), (257, False)])
def test_secrets_have_16_to_256_characters(length: int, accepted: bool) -> None:
    if accepted:
        assert token_of("a", Plane.CLIENT, "s" * length).digest == digest_of("s" * length)
    else:
        with pytest.raises(InvalidInput, match="must have 16 to 256 printable characters"):
            token_of("a", Plane.CLIENT, "s" * length)


@pytest.mark.parametrize("field", ["workers", "models"])
def test_a_token_has_at_most_64_patterns(field: str) -> None:
    patterns = [f"h{i}" for i in range(65)]
    assert len(getattr(token_of("a", Plane.WORKER, SECRET, **{field: patterns[:64]}), field)) == 64
    with pytest.raises(InvalidInput, match=f"^{field}: must be at most 64 patterns"):
        token_of("a", Plane.WORKER, SECRET, **{field: patterns})
