"""The rule for the addresses of workers: what is refused, and what --worker-allow changes about it."""

import logging

import pytest

from controller.domain.errors import SettingsError, WorkerNotAllowed
from controller.security.worker_addresses import WorkerAddresses


def refusal(allowed: str | None, host: str, *addresses: str, port: int = 21002) -> str:
    """Return why the addresses of a host are refused, or "" if they are not."""
    try:
        WorkerAddresses(allowed).usable(host, port, addresses or (host,))
    except WorkerNotAllowed as error:
        return str(error)
    return ""


LINK_LOCAL = [
    "169.254.169.254",
    "169.254.0.1",
    "fe80::1",
    "fe80::a9fe:a9fe%eth0",
    "febf::1",
    "::ffff:169.254.169.254",
    "::169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::169.254.169.254",
    "64:ff9b:1:a9fe:a9:fe00::",
    "2002:a9fe:a9fe::",
    "::ffff:0:169.254.169.254",
    "2001:0:a9fe:a9fe::",
    "2001::5601:5601",
    "fd00::5efe:169.254.169.254",
]
METADATA = [
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:a9fe:a9fe::1", "fd00:100::100:200"),
    *("100.100.100.200", "168.63.129.16", "::ffff:100.100.100.200"),
]
NEVER = ["0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "239.255.255.255", "ff02::1", "255.255.255.255", "::ffff:0.0.0.0"]
ORDINARY = ["127.0.0.1", "::1", "10.0.0.5", "fd00::5", "192.0.2.7", "2001:db8::1", "169.253.0.1", "100.100.100.201"]


@pytest.mark.parametrize("address", LINK_LOCAL)
@pytest.mark.parametrize("allowed", [None, "*", "0.0.0.0/0,::/0,*.internal,h"])
def test_link_local_addresses_have_to_be_named(allowed: str | None, address: str) -> None:
    for host in (address, "h"):
        assert "is a link-local address, where cloud machines read" in refusal(allowed, host, address)


@pytest.mark.parametrize("address", METADATA)
@pytest.mark.parametrize("allowed", [None, "*", "0.0.0.0/0,::/0,*.internal,h"])
def test_metadata_addresses_have_to_be_named(allowed: str | None, address: str) -> None:
    for host in (address, "h"):
        assert "is the address of a cloud metadata service" in refusal(allowed, host, address)


@pytest.mark.parametrize("address", NEVER)
@pytest.mark.parametrize("allowed", [None, "*", "0.0.0.0/0,::/0"])
def test_addresses_of_no_machine_are_never_allowed(allowed: str | None, address: str) -> None:
    assert "is unspecified, multicast or broadcast" in refusal(allowed, address)
    assert "is unspecified, multicast or broadcast" in refusal(allowed, "h", "10.0.0.1", address)


@pytest.mark.parametrize("pattern", ["0.0.0.0", "::", "224.0.0.0/8", "[ff02::1]:80", "255.255.255.255"])
def test_addresses_of_no_machine_cannot_be_named(pattern: str) -> None:
    with pytest.raises(SettingsError, match="which cannot be the address of a worker"):
        WorkerAddresses(pattern)


@pytest.mark.parametrize("address", ORDINARY)
def test_other_addresses_are_allowed_by_default(address: str) -> None:
    assert refusal(None, address) == ""
    assert refusal(None, "h", address) == ""


@pytest.mark.parametrize(
    ("allowed", "host", "addresses", "reason"),
    [
        ("169.254.1.5", "169.254.1.5", [], ""),
        ("169.254.1.5", "169.254.1.6", [], "is a link-local address"),
        ("169.254.1.5", "10.0.0.5", [], "is not in --worker-allow"),
        ("169.254.1.5:80", "169.254.1.5", [], "is a link-local address"),
        ("169.254.0.0/16,*", "::ffff:169.254.1.6", [], ""),
        ("169.254.1.5", "64:ff9b::169.254.1.5", [], "is not in --worker-allow"),
        ("169.254.1.5,[64:ff9b::/96]", "64:ff9b::169.254.1.5", [], ""),
        ("168.0.0.0/7", "169.254.1.5", [], "is a link-local address"),
        ("fe80::1", "fe80::1", [], ""),
        ("h,169.254.1.5", "h", ["169.254.1.5"], ""),
        ("10.0.0.0/8", "10.0.0.5", [], ""),
        ("10.0.0.0/8", "11.0.0.5", [], "11.0.0.5:21002 is not in --worker-allow"),
        ("10.0.0.0/8", "h", ["10.0.0.5"], ""),
        ("10.0.0.0/8", "h", ["10.0.0.5", "11.0.0.5"], "h has the address 11.0.0.5:21002, which is not in"),
        ("10.0.0.0/8:80-90", "10.0.0.5", [], "10.0.0.5:21002 is not in --worker-allow"),
        ("*.gpu.internal", "a.gpu.internal", ["10.0.0.5", "fd00::5"], ""),
        ("*.gpu.internal", "a.example.com", ["10.0.0.5"], "is not in --worker-allow"),
        ("*.gpu.internal", "10.0.0.5", [], "is not in --worker-allow"),
        ("*.gpu.internal", "a.gpu.internal", ["169.254.169.254"], "is a link-local address"),
        ("*.gpu.internal", "A.GPU.internal", ["10.0.0.5"], ""),
        ("[fd00::/8]", "fd00::5", [], ""),
        ("[fd00::/8]", "fc00::5", [], "[fc00::5]:21002 is not in --worker-allow"),
        ("*", "2001:db8::1", [], ""),
    ],
)
def test_worker_allow_decides(allowed: str, host: str, addresses: list[str], reason: str) -> None:
    found = refusal(allowed, host, *addresses)
    assert (reason in found) if reason else found == ""


def test_each_address_of_a_name_is_checked_and_none_is_invented() -> None:
    rule = WorkerAddresses()
    assert rule.usable("h", 1, ["10.0.0.1", "fd00::1"]) == ["10.0.0.1", "fd00::1"]
    with pytest.raises(WorkerNotAllowed):
        rule.usable("h", 1, ["10.0.0.1", "169.254.169.254"])
    with pytest.raises(WorkerNotAllowed, match="is not an IP address"):
        rule.usable("h", 1, ["h"])


def test_link_local_ipv6_address_of_a_name_is_not_used_beside_another() -> None:
    rule = WorkerAddresses()
    assert rule.usable("h", 1, ["fe80::1%eth0", "10.0.0.1"]) == ["10.0.0.1"]
    with pytest.raises(WorkerNotAllowed, match="link-local"):
        rule.usable("h", 1, ["fe80::1%eth0"])


def test_refused_connection_is_logged_once_for_each_host_and_port(caplog: pytest.LogCaptureFixture) -> None:
    rule = WorkerAddresses()
    for port in (1, 1, 2):
        rule.log_refusal("h", port, WorkerNotAllowed("h has an address that is refused."))
    assert len(caplog.messages) == 2
    assert caplog.records[0].levelno == logging.WARNING
    assert "h has an address that is refused. It gets requests only if" in caplog.messages[0]
    for port in range(5_000):
        rule.log_refusal("h", port, WorkerNotAllowed("x"))
    assert len(rule._logged) <= 1_000
