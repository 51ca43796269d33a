"""Settings: their defaults, and the values that are refused at the start."""

from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import SettingsError
from controller.settings import Settings, all_settings
from controller.settings.declaration import environment_variables, flag
from controller.store_url import read_password_file


def test_defaults_are_those_of_fastchat() -> None:
    settings = Settings()
    assert (settings.host, settings.port) == ("localhost", 21001)
    assert settings.dispatch_method is DispatchMethod.SHORTEST_QUEUE
    assert (settings.heartbeat_expiration, settings.worker_timeout) == (90, 100)
    assert settings.ssl is False


def test_every_setting_has_a_flag_a_variable_and_a_help_text() -> None:
    for setting in all_settings():
        assert flag(setting.name).startswith("--")
        assert environment_variables(setting)[0] == f"CONTROLLER_{setting.name.upper()}"
        assert setting.metadata["help"].count(".") >= 1
        assert not (setting.metadata["secret"] and setting.repr)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": -1}, "--port must be from 0 to 65535"),
        ({"port": 65536}, "--port"),
        ({"replicas": 0}, "--replicas must be from 1"),
        ({"replicas": 257}, "--replicas"),
        ({"forward_tries": 0}, "--forward-tries must be from 1 to 16 workers, not 0"),
        ({"forward_tries": 17}, "--forward-tries"),
        ({"dispatch_method": "nonsense"}, "--dispatch-method must be one of shortest_queue, lottery, not nonsense"),
        ({"heartbeat_expiration": 2e7}, "--heartbeat-expiration must be from 0.001 to 10,000,000 seconds, not 2"),
        ({"heartbeat_expiration": 0}, "--heartbeat-expiration must be from 0.001 to 10,000,000 seconds, not 0"),
        ({"worker_timeout": float("nan")}, "--worker-timeout"),
        ({"probe_timeout": float("inf")}, "--probe-timeout"),
        ({"redis_timeout": -1}, "--redis-timeout"),
        ({"sweep_interval": 0}, "--sweep-interval"),
        ({"register_timeout": -1}, "--register-timeout must be from 0 to"),
        ({"namespace": ""}, "--namespace must have"),
        ({"namespace": "a}b"}, "--namespace must have"),
        ({"namespace": "a b"}, "--namespace must have"),
        ({"default_capacity": -1}, "--default-capacity must be 0, for unknown, or at most 1000000, not -1"),
        ({"default_capacity": 1_000_001}, "--default-capacity"),
        *(
            ({"capacity": capacity}, "--capacity must be MODEL=N, .* such as vicuna-7b=5,vicuna-13b=3")
            for capacity in ("m", "m=", "=5", "m=0", "m=-1", "m=1.5", "m=1000001", "m=5,", "m=five", "m=5,n")
        ),
        ({"capacity": "m=5,m=6"}, "--capacity has two values for the model 'm'"),
        ({"log_level": "loud"}, "--log-level must be one of"),
        ({"ssl": True}, "--ssl needs --ssl-keyfile .* SSL_KEYFILE"),
        ({"ssl": True, "ssl_keyfile": Path("/nowhere"), "ssl_certfile": Path("/nowhere")}, "is not a file: /nowhere"),
        ({"redis_url": "redis://h", "data_dir": Path("d")}, "exclude each other"),
        ({"redis_url": "http://h"}, "has an unknown scheme. It must look like redis://"),
        ({"redis_url": "localhost:6379"}, "has an unknown scheme"),
        ({"redis_url": "redis://"}, "lacks a host"),
        ({"redis_url": "redis://h:99999"}, "has an invalid port"),
        ({"redis_url": "unix://"}, "lacks the path of a socket"),
        ({"redis_url": "unix://path"}, "three slashes"),
        ({"redis_url": "unix:///a%00b"}, "has a zero byte in its path"),
        ({"redis_url": "embedded:///a%00b"}, "has a zero byte in its path"),
        ({"redis_url": "redis://h/abc"}, "an invalid database number"),
        ({"redis_url": " redis://h"}, "a space or a control character"),
        ({"redis_url": "redis://h/99999999"}, "an invalid database number"),
        ({"redis_url": "redis://h/-1"}, "an invalid database number"),
        ({"redis_url": "redis://h?socket_timeout=abc"}, "must not have query parameters"),
        ({"redis_url": "unix:///s?db=1"}, "must not have query parameters"),
        (
            {"redis_password_file": Path("/nowhere")},
            "--redis-password-file needs a --redis-url that names a server",
        ),
        (
            {"redis_url": "redis://:p@h", "redis_password_file": Path("/nowhere")},
            "--redis-password-file needs a --redis-url that .* no password",
        ),
        ({"redis_url": "redis://h", "redis_password_file": Path("/nowhere")}, "/nowhere cannot be read"),
        ({"redis_url": "redis://h", "redis_password_file": Path("/dev/null")}, "/dev/null is empty"),
        ({"redis_url": ""}, "has an unknown scheme"),
        ({"parent": "http://top:1"}, "--parent needs --advertise"),
        ({"advertise": "http://lb:1"}, "--advertise needs --parent or --by-way"),
        ({"by_way": True}, "--by-way needs --advertise"),
        ({"parent": "http://a:1,http://LB:1/", "advertise": "http://lb:1"}, "A cluster cannot register at itself"),
        ({"parent": "http://top:1,", "advertise": "http://lb:1"}, "--parent must be an address such as"),
        ({"parent": "top:1", "advertise": "http://lb:1"}, "--parent must be an address such as"),
        ({"parent": "http://top:1", "advertise": "lb"}, "--advertise must be an address such as"),
        ({"parent": "http://n:secret-t0ken@", "advertise": "http://lb:1"}, "--parent must be an address such as"),
        ({"parent": "http://n:secret/t0ken@h:1", "advertise": "http://lb:1"}, "--parent must be .* %2F for a slash"),
        ({"parent": "http://n@h:1", "advertise": "http://lb:1"}, "--parent has an @ without a name and a token"),
        ({"parent": "http://n:@h:1", "advertise": "http://lb:1"}, "--parent has an @ without a name and a token"),
        ({"parent": "http://n:a%0Ab@h:1", "advertise": "http://lb:1"}, "--parent has an @ without a name and a token"),
        ({"parent": "http://n:t@lb:1", "advertise": "http://lb:1"}, "A cluster cannot register at itself"),
        ({"worker_allow": "10.0.0.1/8"}, "--worker-allow must have patterns .* This part is wrong: '10.0.0.1/8'"),
        ({"worker_allow": "a,"}, "--worker-allow must have patterns .* This part is wrong: ''"),
        ({"worker_allow": "0.0.0.0"}, "--worker-allow has 0.0.0.0, which cannot be the address of a worker"),
        ({"forward_paths": "v1"}, "--forward-paths must have paths .* This one is wrong: 'v1'"),
        ({"forward_paths": "default,/sleep"}, "--forward-paths has /sleep, which is for the management of an engine"),
        ({"upstream_tokens_file": Path("/nowhere")}, "--upstream-tokens-file /nowhere cannot be read"),
        ({"workers_file": Path("/nowhere")}, "--workers-file /nowhere cannot be used: .*No such file"),
        ({"workers_dns": "engines:8000,"}, "--workers-dns must have names such as .* The name ''"),
        ({"workers_dns": "engines:0"}, "The name 'engines:0'"),
        ({"workers_dns": "engines/v1"}, "The name 'engines/v1' must not have a path"),
        ({"workers_dns": "http://engines"}, "The name 'http://engines'"),
        ({"workers_dns": "a b"}, "The name 'a b'"),
        ({"workers_dns": ""}, "The name ''"),
        ({"parent_interval": 0}, "--parent-interval must be from 0.001 to"),
        ({"redis_timeout": 61}, "--redis-timeout must be at most 60 s, not 61"),
    ],
)
def test_invalid_settings_are_refused_with_a_sentence_that_names_the_flag(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        Settings(**values)
    assert str(caught.value).endswith(".")
    assert "t0ken" not in str(caught.value)


def test_ssl_requires_a_certificate_and_the_key_that_belongs_to_it(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(key)
    with pytest.raises(SettingsError, match="--ssl-certfile is not a file"):
        Settings(ssl=True, ssl_keyfile=key, ssl_certfile=certificate)
    certificate.write_text("no PEM")
    with pytest.raises(SettingsError, match=r"--ssl cannot use .* of one pair"):
        Settings(ssl=True, ssl_keyfile=key, ssl_certfile=certificate)
    trustme.CA().issue_cert("localhost").cert_chain_pems[0].write_to_path(certificate)
    with pytest.raises(SettingsError, match=r"--ssl cannot use .* of one pair"):
        Settings(ssl=True, ssl_keyfile=key, ssl_certfile=certificate)
    issued.cert_chain_pems[0].write_to_path(certificate)
    assert Settings(ssl=True, ssl_keyfile=key, ssl_certfile=certificate).ssl


def test_key_with_a_password_is_refused_without_a_prompt(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate")
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (tmp_path / "key").write_bytes(locked)
    with pytest.raises(SettingsError, match="the key has a password"):
        Settings(ssl=True, ssl_keyfile=tmp_path / "key", ssl_certfile=tmp_path / "certificate")


def test_redis_password_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("se/cr:et@ \n")
    store = Settings(redis_url="redis://user@h", redis_password_file=path).store_url()
    assert (store.username, store.password, str(store)) == ("user", None, "redis://h:6379")
    assert store.password_file == path
    assert read_password_file(path) == "se/cr:et@ "
    assert "se/cr" not in repr(store)


def test_capacities_are_split_at_commas_and_at_the_last_equals_sign() -> None:
    defaults = Settings(capacity="m=5, a=b/c=1000000", default_capacity=7).default_capacities
    assert defaults.by_model == {"m": 5, "a=b/c": 1_000_000}
    assert defaults.default == 7
    assert Settings().default_capacities.of(["m"]) is None


def test_names_of_engines_have_the_port_of_http_unless_they_name_one() -> None:
    assert Settings(workers_dns="Engines.default.svc:8000, b").dns_names == (("engines.default.svc", 8000), ("b", 80))
    assert Settings().dns_names == ()
