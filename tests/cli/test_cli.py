"""The command line: flags, environment variables, help and errors."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner, Result
from rich.console import Console

from controller import __version__
from controller.cli.capacities import capacities_table
from controller.cli.main import main
from controller.domain.errors import EmbeddedStoreError
from controller.server import run as server
from controller.settings import Settings, all_settings
from controller.settings.declaration import environment_variables, flag


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Replace the server. Return the settings of each call of `serve`."""
    calls: list[Settings] = []
    monkeypatch.setattr(server, "serve", lambda settings, _: calls.append(settings))
    return calls


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(main, arguments, env=env)


def test_serve_without_flags_uses_the_defaults(served: list[Settings]) -> None:
    assert run("serve").exit_code == 0
    assert served == [Settings()]


VALUES: dict[str, tuple[str, Any]] = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("8000", 8000),
    "dispatch_method": ("lottery", "lottery"),
    "redis_url": ("redis://h", "redis://h"),
    "namespace": ("other", "other"),
    "heartbeat_expiration": ("30", 30.0),
    "replicas": ("4", 4),
    "target_utilization": ("0.5", 0.5),
    "worker_metrics": ("on", "on"),
    "worker_timeout": ("20", 20.0),
    "forward_tries": ("3", 3),
    "connect_timeout": ("1", 1.0),
    "first_byte_timeout": ("300", 300.0),
    "retry_budget": ("0.1", 0.1),
    "forward_paths": ("default,/x", "default,/x"),
    "worker_allow": ("10.0.0.0/8:21002", "10.0.0.0/8:21002"),
    "probe_timeout": ("2", 2.0),
    "booking_decay": ("off", "off"),
    "booking_delay": ("0.1", 0.1),
    "lease_time": ("60", 60.0),
    "poll_interval": ("0", 0.0),
    "engine_poll_interval": ("0.5", 0.5),
    "engine_expiration": ("20", 20.0),
    "workers_dns": ("engines:8000", "engines:8000"),
    "default_capacity": ("5", 5),
    "capacity": ("m=5,n=3", "m=5,n=3"),
    "affinity": ("prefix,m=off", "prefix,m=off"),
    "affinity_header": ("X-Chat", "X-Chat"),
    "affinity_fields": ("session", "session"),
    "affinity_ttl": ("60", 60.0),
    "max_affinity_keys": ("5000", 5000),
    "worker_networks": ("10.0.0.0/8", "10.0.0.0/8"),
    "client_networks": ("10.0.0.0/8,::1", "10.0.0.0/8,::1"),
    "admin_networks": ("127.0.0.1", "127.0.0.1"),
    "satisfy": ("all", "all"),
    "trusted_proxies": ("10.1.0.0/16", "10.1.0.0/16"),
    "published_host": ("127.0.0.1", "127.0.0.1"),
    "parent_interval": ("10", 10.0),
    "redis_timeout": ("0.5", 0.5),
    "register_timeout": ("10", 10.0),
    "snapshot_interval": ("3", 3.0),
    "sweep_interval": ("5", 5.0),
    "shutdown_delay": ("0", 0.0),
    "shutdown_timeout": ("7", 7.0),
    "head_timeout": ("3", 3.0),
    "body_timeout": ("4", 4.0),
    "send_timeout": ("5", 5.0),
    "idle_timeout": ("6", 6.0),
    "max_connections": ("100", 100),
    "max_forwards": ("101", 101),
    "max_body_memory": ("102", 102),
    "max_workers": ("103", 103),
    "max_leases": ("104", 104),
    "max_workers_per_token": ("105", 105),
    "max_leases_per_token": ("106", 106),
    "registration_rate": ("0.5", 0.5),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
}


@pytest.mark.parametrize("name", VALUES)
def test_setting_is_read_from_its_flag_and_its_variables(served: list[Settings], name: str) -> None:
    text, value = VALUES[name]
    [setting] = [setting for setting in all_settings() if setting.name == name]
    assert run("serve", flag(name), text).exit_code == 0
    for variable in environment_variables(setting):
        assert run("serve", **{variable: text}).exit_code == 0
    assert [getattr(settings, name) for settings in served] == [value] * (1 + len(environment_variables(setting)))


def test_files_switches_and_addresses_are_read_from_flags_and_variables(served: list[Settings], tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate")
    files = {"SSL_KEYFILE": str(tmp_path / "key"), "SSL_CERTFILE": str(tmp_path / "certificate")}
    assert run("serve", "--ssl", "--data-dir", str(tmp_path), **files).exit_code == 0
    assert run("serve", CONTROLLER_SSL="1", CONTROLLER_DATA_DIR=str(tmp_path), **files).exit_code == 0
    assert len(served) == 2
    for settings in served:
        assert settings.ssl
        assert (settings.ssl_keyfile, settings.ssl_certfile) == (tmp_path / "key", tmp_path / "certificate")
        assert settings.data_dir == tmp_path
    (tmp_path / "password").write_text("p")
    with_password = ("serve", "--redis-url", "redis://h", "--redis-password-file", str(tmp_path / "password"))
    assert run(*with_password).exit_code == 0
    assert served[2].store_url().password_file == tmp_path / "password"
    (tmp_path / "tokens").write_text("http://10.0.0.5:21002 t")
    assert run("serve", "--upstream-tokens-file", str(tmp_path / "tokens")).exit_code == 0
    assert served.pop().upstream_tokens_file == tmp_path / "tokens"
    (tmp_path / "workers").write_text("workers: []")
    assert run("serve", "--workers-file", str(tmp_path / "workers")).exit_code == 0
    assert served.pop().workers_file == tmp_path / "workers"
    addresses = ("--parent", "http://top:1,http://Other:1/", "--advertise", "http://lb:1")
    assert run("serve", *addresses).exit_code == 0
    assert run("serve", *addresses, CONTROLLER_BY_WAY="true").exit_code == 0
    assert [settings.by_way for settings in served[3:]] == [False, True]
    assert served[3].parents == ("http://top:1", "http://other:1")
    named = set(VALUES) | {"ssl", "ssl_keyfile", "ssl_certfile", "data_dir", "redis_password_file"}
    tokens = {
        f"CONTROLLER_{plane}_TOKENS": f"{plane}=0123456789abcdef-{plane}" for plane in ("WORKER", "CLIENT", "ADMIN")
    }
    (tmp_path / "tokens").write_text("worker w another-secret-of-16\n")
    assert run("serve", "--tokens-file", str(tmp_path / "tokens"), "--insecure", **tokens).exit_code == 0
    assert served[5].insecure
    assert served[5].tokens_file == tmp_path / "tokens"
    assert [token.name for token in served[5].access_rules.tokens] == ["WORKER", "CLIENT", "ADMIN"]
    assert "0123456789abcdef" not in repr(served[5])
    assert run("serve", "--access-log", "--tracing").exit_code == 0
    assert run("serve", CONTROLLER_ACCESS_LOG="1", CONTROLLER_TRACING="true").exit_code == 0
    assert [(settings.access_log, settings.tracing) for settings in served[6:]] == [(True, True)] * 2
    named |= {"parent", "advertise", "by_way", "insecure", "tokens_file", "upstream_tokens_file", "workers_file"}
    named |= {"access_log", "tracing"}
    named |= {"worker_tokens", "client_tokens", "admin_tokens"}
    assert named == {setting.name for setting in all_settings()}


def test_fastchats_variables_are_read_and_ours_take_precedence(served: list[Settings]) -> None:
    theirs = {"FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION": "50", "FASTCHAT_WORKER_API_TIMEOUT": "60"}
    run("serve", **theirs)
    run("serve", CONTROLLER_HEARTBEAT_EXPIRATION="70", **theirs)
    run("serve", "--heartbeat-expiration", "80", CONTROLLER_HEARTBEAT_EXPIRATION="70", **theirs)
    assert [(s.heartbeat_expiration, s.worker_timeout) for s in served] == [(50, 60), (70, 60), (80, 60)]


def test_error_is_one_sentence_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run("serve", "--replicas", "0")
    assert (refused.exit_code, refused.stderr) == (1, "Error: --replicas must be from 1 to 256, not 0.\n")
    assert run("serve", "--port", "x").exit_code == 2
    assert run("serve", "--dispatch-method", "best").exit_code == 2

    def fails(*_: object) -> None:
        raise EmbeddedStoreError("The directory is in use.")

    monkeypatch.setattr(server, "serve", fails)
    assert run("serve").stderr == "Error: The directory is in use.\n"


def test_certificate_flags_without_ssl_are_refused(served: list[Settings], tmp_path: Any) -> None:
    for name in ("--ssl-keyfile", "--ssl-certfile"):
        refused = run("serve", name, str(tmp_path / "file"))
        assert (refused.exit_code, refused.stderr) == (
            1,
            f"Error: {name} has no effect without --ssl. Add --ssl, or remove {name}.\n",
        )
    assert run("serve", SSL_KEYFILE="of another program", SSL_CERTFILE="of another program").exit_code == 0
    assert len(served) == 1


OLD_FLAG, NEW_FLAG = "--register-patience", "--register-timeout"
OLD_VARIABLE, NEW_VARIABLE = "CONTROLLER_REGISTER_PATIENCE", "CONTROLLER_REGISTER_TIMEOUT"


@pytest.mark.parametrize(
    ("flags", "variables", "value", "names"),
    [
        ([OLD_FLAG, "5"], {}, 5, [(OLD_FLAG, NEW_FLAG)]),
        ([f"{OLD_FLAG}=5"], {NEW_VARIABLE: "7"}, 5, [(OLD_FLAG, NEW_FLAG)]),
        ([OLD_FLAG, "5", NEW_FLAG, "6"], {}, 6, [(OLD_FLAG, NEW_FLAG)]),
        ([OLD_FLAG, "5"], {OLD_VARIABLE: "8"}, 5, [(OLD_FLAG, NEW_FLAG)]),
        ([], {OLD_VARIABLE: "8"}, 8, [(OLD_VARIABLE, NEW_VARIABLE)]),
        ([], {OLD_VARIABLE: "8", NEW_VARIABLE: "7"}, 7, []),
        ([NEW_FLAG, "6"], {OLD_VARIABLE: "8"}, 6, []),
        ([NEW_FLAG, "6"], {}, 6, []),
        ([], {}, 90, []),
    ],
)
def test_deprecated_names_still_work(
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    variables: dict[str, str],
    value: float,
    names: list[tuple[str, str]],
) -> None:
    calls: list[tuple[float, Any]] = []
    monkeypatch.setattr(server, "serve", lambda settings, warnings: calls.append((settings.register_timeout, warnings)))
    assert run("serve", *flags, **variables).exit_code == 0
    assert calls == [
        (value, [f"{old} is deprecated and will be removed. Use {new} instead." for old, new in names]),
    ]


def test_a_deprecated_name_is_logged_once_with_the_new_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise EmbeddedStoreError("Stopped by the test.")

    monkeypatch.setattr(server, "logging_config", lambda *_: {"version": 1, "incremental": True})
    monkeypatch.setattr(server, "bind_listeners", stop)
    monkeypatch.setattr(server, "_set_signal_handlers", lambda: None)
    assert run("serve", OLD_FLAG, "5").stderr == "Error: Stopped by the test.\n"
    assert caplog.messages == [f"{OLD_FLAG} is deprecated and will be removed. Use {NEW_FLAG} instead."]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_help_shows_examples_and_all_settings() -> None:
    top = run("--help").stdout
    assert "controller serve" in top
    assert "--controller-address http://localhost:21001" in top
    text = run("serve", "--help").stdout
    for setting in all_settings():
        assert (flag(setting.name) in text) is not setting.metadata["secret"]
        assert environment_variables(setting)[0] in "".join(text.split())
    assert "default: 21001" in text


def test_version_is_printed() -> None:
    assert run("--version").stdout == f"controller, version {__version__}\n"


def test_workers_refuses_an_invalid_address() -> None:
    refused = run("workers", "--controller-address", "localhost:21001")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "must begin with http://" in refused.stderr
    assert run("workers", CONTROLLER_ADDRESS="localhost:21001").stderr == refused.stderr


def test_workers_fails_if_no_controller_listens() -> None:
    refused = run("workers", "--controller-address", "http://127.0.0.1:1")
    assert refused.exit_code == 1
    assert "Is the controller running, and is --controller-address right?" in " ".join(refused.stderr.split())


@pytest.mark.parametrize("arguments", [["list"], ["set", "m", "5"], ["unset", "m"]])
def test_capacity_fails_if_no_controller_listens(arguments: list[str]) -> None:
    refused = run("capacity", *arguments, "--controller-address", "http://127.0.0.1:1")
    assert refused.exit_code == 1
    assert "Is the controller running, and is --controller-address right?" in " ".join(refused.stderr.split())


def test_help_of_capacity_shows_how_to_set_one() -> None:
    assert "controller capacity set vicuna-7b 5" in run("capacity", "--help").stdout
    text = run("capacity", "set", "--help").stdout
    assert "TARGET is the URL of a worker" in " ".join(text.split())
    assert "5. `controller serve --default-capacity`" in text


def test_table_of_capacities_fits_80_columns() -> None:
    names = [f"http://worker-{'x' * 80}:21002", "a-model-with-a-long-name-" * 4]
    listed = [{"worker_name": names[0], "capacity": 1_000_000}, {"model": names[1], "capacity": 5}]
    printed = io.StringIO()
    console = Console(width=80, file=printed)
    console.print(capacities_table(listed, console))
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "1000000" in "".join(lines)
    begin, end = lines[2].index("name"), lines[4].index("1000000")
    assert "".join(line[begin:end].strip() for line in lines[4:]) == "".join(names)


def test_help_imports_no_library_that_it_does_not_need() -> None:
    """It would take several times as long."""
    code = (
        "import sys; from controller.cli.main import main; main(['--help'], standalone_mode=False); "
        "sys.exit(str(sorted({'rich', 'aiohttp', 'redis', 'starlette', 'uvicorn', 'msgspec'} & set(sys.modules))))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stderr == "[]\n"
