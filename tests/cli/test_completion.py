"""Shell completion, in the shells themselves where they are installed."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from controller.cli.main import main
from tests.cli.conftest import FakeController
from tests.cli.samples import listed

SHELLS = ("bash", "zsh", "fish")
BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")


def script(shell: str) -> str:
    ran = CliRunner().invoke(main, ["completion", shell])
    assert (ran.exit_code, ran.stderr) == (0, "")
    return ran.stdout


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a PATH with the command `controller` of this checkout."""
    command = tmp_path / "controller"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m controller "$@"\n')
    command.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


def completed(fake: FakeController, *words: str) -> list[str]:
    """Return what bash would get for a command line whose last word is incomplete."""
    env = {"COMP_WORDS": " ".join(("controller", *words)), "COMP_CWORD": str(len(words))}
    ran = CliRunner().invoke(
        main,
        [],
        prog_name="controller",
        env={**env, "_CONTROLLER_COMPLETE": "bash_complete", "CONTROLLER_ADDRESS": fake.url},
    )
    return [line.partition(",")[2] for line in ran.output.splitlines() if line]


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_say_how_to_install_them_and_are_valid(shell: str, tmp_path: Path) -> None:
    text = script(shell)
    assert text.startswith(f"# Completion of `controller` for {shell}.")
    assert "controller completion" in text.splitlines()[1]
    if shutil.which(shell) is None:
        pytest.skip(f"NOT TESTED: {shell}, which is not on PATH")
    (tmp_path / "script").write_text(text)
    checked = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_commands_options_and_values_are_completed(fake: FakeController) -> None:
    assert completed(fake, "do") == ["doctor"]
    assert completed(fake, "wor") == ["worker", "workers"]
    assert "--deadline" in completed(fake, "drain", "--de")
    assert "stalled" in completed(fake, "workers", "--sort", "")
    assert completed(fake, "capacity", "un") == ["unset"]


def test_workers_and_models_come_from_the_controller(fake: FakeController) -> None:
    workers = [listed("http://10.0.0.5:21002", "vicuna-7b", "llama"), listed("http://10.0.0.6:21002", "vicuna-13b")]
    fake.responses = {"/workers": {"workers": workers}}
    assert completed(fake, "drain", "http://10.0.0.5:21002", "http") == [each["worker_name"] for each in workers]
    assert completed(fake, "worker", "10.0.0.6") == ["10.0.0.6:21002"]
    assert completed(fake, "worker", "h") == [each["worker_name"] for each in workers]
    assert completed(fake, "explain", "vicuna") == ["vicuna-13b", "vicuna-7b"]
    assert completed(fake, "workers", "--model", "l") == ["llama"]
    assert completed(fake, "route", "set", "gpt", "--to", "vicuna-7") == ["vicuna-7b"]
    assert completed(fake, "route", "set", "gpt", "--fallback", "x,l") == ["x,llama"]
    assert completed(fake, "dispatch", "--controller-address", "http://127.0.0.1:1", "v") == []


def test_host_that_begins_like_a_scheme_is_completed(fake: FakeController) -> None:
    fake.responses = {"/workers": {"workers": [listed("http://httpd-1:21002", "m"), listed("https://b:1", "m")]}}
    assert completed(fake, "worker", "httpd") == ["httpd-1:21002"]
    assert completed(fake, "worker", "https") == ["https://b:1"]
    assert completed(fake, "worker", "b") == ["b:1"]


def test_names_of_routes_come_from_the_controller(fake: FakeController) -> None:
    routes = [{"model": name} for name in ("gpt", "a b", "other")]
    fake.responses = {"/model_routes": {"model_routes": routes}}
    assert completed(fake, "route", "remove", "") == completed(fake, "route", "set", "") == ["gpt", "other"]
    fake.responses = {"/model_routes": {"model_routes": "nonsense"}}
    assert completed(fake, "route", "remove", "") == []


@pytest.mark.parametrize(
    "name",
    [
        "$(touch x)",
        "`touch x`",
        "a b",
        "a;b",
        "a&b",
        "a*",
        "a|b",
        "-rf",
        "--help",
        "a'b",
        'a"b',
        "a\nb",
        "a\x1bb",
        "~a",
    ],
)
def test_names_that_a_shell_could_run_are_not_completed(fake: FakeController, name: str) -> None:
    fake.responses = {"/workers": {"workers": [listed(f"http://h/{name}", name, "safe")]}}
    assert completed(fake, "explain", "") == ["safe"]
    assert completed(fake, "drain", "http://h/") == ([f"http://h/{name}"] if name in ("-rf", "--help") else [])


def test_unusable_responses_complete_nothing_and_print_nothing(fake: FakeController) -> None:
    assert completed(fake, "drain", "http") == []
    fake.responses = {"/workers": {"workers": "nonsense"}}
    assert completed(fake, "explain", "") == []


def in_shell(shell: str, commands: str, path: str, fake: FakeController) -> list[str]:
    env = {**os.environ, "PATH": path, "CONTROLLER_ADDRESS": fake.url, "HOME": "/nonexistent"}
    ran = subprocess.run(
        [shell, "-c", commands],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_bash_completes_a_url(path: str, fake: FakeController) -> None:
    fake.responses = {"/workers": {"workers": [listed("http://10.0.0.5:21002", "m")]}}
    commands = """
        eval "$(controller completion bash)"
        complete -p controller > /dev/null
        [[ $COMP_WORDBREAKS != *:* ]]
        COMP_WORDS=(controller drain http://10.0.0.5:2) COMP_CWORD=2
        _controller_completion controller
        echo "${COMPREPLY[@]}"
    """
    assert in_shell("bash", commands, path, fake) == ["http://10.0.0.5:21002"]


@pytest.mark.skipif(not BASH_COMPLETION.exists(), reason="NOT TESTED: bash-completion, which is not installed")
def test_bash_completes_a_url_with_bash_completion(path: str, fake: FakeController) -> None:
    """bash splits the URL at its colons, and other commands rely on that. So only the last part is returned."""
    fake.responses = {"/workers": {"workers": [listed("http://10.0.0.5:21002", "m")]}}
    commands = f"""
        . {BASH_COMPLETION}
        eval "$(controller completion bash)"
        [[ $COMP_WORDBREAKS == *:* ]]
        COMP_WORDS=(controller drain http : //10.0.0.5 : 2) COMP_CWORD=6
        COMP_LINE="controller drain http://10.0.0.5:2" COMP_POINT=34
        _controller_completion controller
        echo "${{COMPREPLY[@]}}"
        COMP_WORDS=(controller dr) COMP_CWORD=1 COMP_LINE="controller dr" COMP_POINT=13 COMPREPLY=()
        _controller_completion controller
        echo "${{COMPREPLY[@]}}"
    """
    assert in_shell("bash", commands, path, fake) == ["21002", "drain"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="NOT TESTED: fish, which is not on PATH")
def test_fish_completes_a_url(path: str, fake: FakeController, tmp_path: Path) -> None:
    fake.responses = {"/workers": {"workers": [listed("http://10.0.0.5:21002", "m")]}}
    commands = f"""
        set -x HOME {tmp_path}
        controller completion fish | source
        complete --do-complete 'controller drain http://10.0.0.5:2'
    """
    assert in_shell("fish", commands, path, fake) == ["http://10.0.0.5:21002"]
