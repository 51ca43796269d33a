"""One URL has one meaning: each accepted name of a worker is read alike by all HTTP clients that get it.

The controller connects with aiohttp. FastChat's clients, which get the name from /get_worker_address, use `requests`
and httpx. CVE-2026-24779 was a URL that two parsers read differently.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx
import pytest
import requests
import urllib3
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from controller.domain.errors import InvalidInput
from controller.domain.worker import worker_name
from controller.upstream.session import location

PORTS = {"http": 80, "https": 443}
PIECES = [
    *"\\@;:/?#%[]",
    "%00",
    "%2f",
    "%40",
    "%5c",
    "%0d%0a",
    "\t",
    "\n",
    "\r",
    "\0",
    " ",
    "\u3002",  # ideographic full stop, which IDNA turns into a dot
    "\uff0e",
    "\uff11",  # digits of other scripts
    "\u0661",
    "\u2488",
    "\u2100",  # becomes a/c in NFKC
    "\uff03",
    "\u00ad",  # is dropped by IDNA
    "\u200d",
    "ß",
    "user@",
    "user:password@",
    "evil.example",
    "127.0.0.1",
    "169.254.169.254",
    "0251.0376.0251.0376",
    "0xa9.0xfe.0xa9.0xfe",
    "0xa9fea9fe",
    "2852039166",
    "169.254.43518",
    "1.2.3.4.",
    "[::1]",
    "[fe80::1%25eth0]",
    "[fe80::1%eth0]",
    "[::ffff:169.254.169.254]",
    "[v1.fe80]",
    "localhost",
    "LocalHost.",
    "a" * 63,
    "a" * 64,
    "xn--nxasmq6b",
    "xn--a",
    ":80",
    ":0080",
    ":",
    ":443",
    ":99999",
    ":+1",
    ":\u0661",
    "/path",
    "/..",
    "//",
    "/./",
    ".",
    "..",
    "-",
    "_",
    "~",
    "$&'()*+,=!",
]
NAMES = st.builds(
    "{}{}".format,
    st.sampled_from(["http://", "https://", "HTTP://", "http:/", "http:", "//", "http:\\\\", "https:///", " http://"]),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join) | st.text(max_size=20),
)


def same_host(text: str) -> object:
    """Return a host in a form in which two spellings of one address are equal."""
    host = text.strip("[]").lower().rstrip(".")
    try:
        return ip_address(host)
    except ValueError:
        return host


@given(NAMES)
@example("http://127.0.0.1\\@evil.example")
@example("http://evil.example\\@127.0.0.1:80/")
@example("http://127.0.0.1:80@evil.example")
@example("http://a;@b")
@example("http://a.example:80;b.example:81")
@example("http://[::1]@evil.example")
@example("http://xn--nxasmq6b-.-:1")
@example("http://xn--a")
@example("http://a-.b_:1/%2f..%2f@x:2")
@example("http://[::ffff:1.2.3.4]:1")
@example("http://a/b@c.example:1")
def test_accepted_name_has_one_host_and_port_for_all_clients(text: str) -> None:
    try:
        name = worker_name(text)
    except InvalidInput:
        return
    assert worker_name(name) == name
    scheme, _, rest = name.partition("://")
    authority = rest.partition("/")[0]
    host, colon, port = authority.rpartition(":")
    if not colon or "]" in port:
        host, port = authority, str(PORTS[scheme])
    expected = (same_host(host), int(port))

    written = urlsplit(text.strip())  # names that were written otherwise mean the same
    assert (same_host(written.hostname or ""), written.port or PORTS[written.scheme]) == expected

    parsed = URL(f"{name}/worker_get_status")
    assert (same_host(parsed.raw_host or ""), parsed.port) == expected
    assert (parsed.scheme, parsed.raw_user, parsed.raw_password, parsed.raw_query_string) == (scheme, None, None, "")
    assert parsed.raw_path.endswith("/worker_get_status")
    found, found_port = location(f"{name}/worker_get_status")
    assert (same_host(found), found_port) == expected

    prepared = requests.Request("POST", f"{name}/worker_generate_stream").prepare()
    sent = urllib3.util.parse_url(str(prepared.url))
    assert (same_host(sent.host or ""), sent.port or PORTS[scheme], sent.auth) == (*expected, None)
    assert "Authorization" not in prepared.headers
    [pool] = [urllib3.PoolManager().connection_from_url(str(prepared.url))]
    assert (same_host(pool.host), pool.port) == expected

    try:
        request = httpx.Request("POST", f"{name}/worker_generate_stream")
    except UnicodeError:  # httpx sends nothing to a name that is no valid IDNA, such as http://xn--a
        assert "xn--" in name
        return
    assert (same_host(request.url.raw_host.decode()), request.url.port or PORTS[scheme]) == expected
    assert request.url.userinfo == b""


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join))
def test_what_follows_a_host_never_changes_it(text: str) -> None:
    """An attacker who may register a path at an allowed host cannot reach another host with it."""
    try:
        name = worker_name(f"http://allowed.example:21002{text}")
    except InvalidInput:
        return
    host, port = location(f"{name}/worker_get_status")
    if host != "allowed.example" or port != 21002:
        # The text continued with the name of the host, or with the port. Then the name says so too.
        assert name.startswith((f"http://{host}:{port}", f"http://{host}/")) or name == f"http://{host}"
        assert host.startswith("allowed.example")


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1\\@evil.example",
        "http://evil.example\\.allowed.example",
        "http://a@b",
        "http://a%40b",
        "http://a%00.b",
        "http://a%2fb",
        "http://a%2eb",
        "http://0x7f.0.0.1",
        "http://0x7f000001",
        "http://017700000001",
        "http://0177.0.0.1",
        "http://2130706433",
        "http://127.1",
        "http://127.0.0.01",
        "http://[fe80::1%25eth0]",
        "http://[fe80::1%eth0]",
        "http://[::1%25lo]:80",
        "http://[::ffff:127.0.0.1.2]",
        "http://[0:0:0:0:0:0:0:0:1]",
        "http://\uff11\uff12\uff17.0.0.1",
        "http://127\u30020\u30020\u30021",
        "http://loc\talhost",
        "http://loc\nalhost",
        "http://a;b",
        "http://a:80;81",
        "http://a:\u0668\u0660",
        "http://" + "a" * 64 + ".example",
    ],
)
def test_ambiguous_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        worker_name(text)
