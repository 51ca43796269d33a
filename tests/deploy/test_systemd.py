"""The unit for systemd: systemd accepts it, it takes most rights away, and its numbers fit the settings."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from controller.cli.main import main
from controller.server import run as server
from controller.settings import Settings, all_settings
from controller.settings.declaration import environment_variables
from controller.settings.store import DEFAULT_DATA_DIR
from tests.deploy.compose import ROOT

pytestmark = pytest.mark.deploy

FOLDER = ROOT / "deploy/systemd"
UNIT = FOLDER / "controller.service"
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(
    ANALYZE is None, reason="NOT TESTED, the unit: systemd-analyze is not installed (Debian's package systemd has it)"
)


def service() -> dict[str, list[str]]:
    """Return the values of the section [Service], by name."""
    found: dict[str, list[str]] = {}
    _, section = UNIT.read_text().split("[Service]")
    for name, value in re.findall(r"(?m)^(\w+)=(.*)$", section.split("[Install]")[0]):
        found.setdefault(name, []).append(value)
    return found


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ANALYZE), *arguments], capture_output=True, text=True)


@needs_systemd
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """The program of this environment stands for the installed one, which must exist."""
    installed = Path(sys.executable).with_name("controller")
    assert installed.exists()
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/controller/bin/controller", str(installed)))
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(unit))
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KilMode=mixed"))
    assert "'KilMode'" in analyze("verify", "--man=no", "--recursive-errors=no", str(unit)).stderr


@needs_systemd
def test_the_unit_takes_most_rights_away() -> None:
    """systemd counts from 0 to 10. Most of what remains is the use of the network. Without any option, it is 9.6."""
    done = analyze("security", "--offline=yes", "--threshold=15", str(UNIT))
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not shutil.which("systemd-sysusers"), reason="NOT TESTED, the user: systemd is not installed")
def test_the_user_of_the_unit_is_created(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", str(FOLDER / "sysusers.conf")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "etc/passwd").read_text().startswith("controller:")
    assert service()["User"] == service()["Group"] == ["controller"]


def test_the_time_to_stop_is_longer_than_a_shutdown() -> None:
    settings = Settings()
    final_frames, killed_after = 1, 5  # seconds, as in controller/server/run.py
    longest = settings.shutdown_delay + settings.shutdown_timeout + final_frames + killed_after
    assert int(service()["TimeoutStopSec"][0]) > longest
    assert service()["KillMode"] == ["mixed"], "SIGTERM to all processes would end the embedded store first"


def test_the_open_files_fit_the_settings() -> None:
    settings = Settings()
    assert int(service()["LimitNOFILE"][0]) >= settings.max_connections + settings.max_forwards + 512


def test_the_environment_is_made_of_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (FOLDER / "controller.env").read_text()
    environment = dict(re.findall(r"(?m)^(?:# )?(CONTROLLER_\w+)=(.*)$", text))
    assert len(environment) == 6
    assert environment.keys() <= {name for setting in all_settings() for name in environment_variables(setting)}
    assert "Environment" not in service()
    for name in ("REDIS_PASSWORD", "TOKENS"):
        variable = f"CONTROLLER_{name}_FILE"
        assert environment[variable].startswith(f"/etc/{service()['ConfigurationDirectory'][0]}/")
        file = tmp_path / name
        file.write_text(f"worker rack {'s' * 32}\n")
        environment[variable] = str(file)
    parsed: list[Settings] = []
    monkeypatch.setattr(server, "serve", lambda settings, _: parsed.append(settings))
    result = CliRunner().invoke(main, service()["ExecStart"][0].split()[1:], env=environment)
    assert result.exit_code == 0, result.output
    assert parsed[0].access_rules.is_closed
    assert service()["WorkingDirectory"] == [f"/var/lib/{service()['StateDirectory'][0]}"]
    assert not DEFAULT_DATA_DIR.is_absolute(), "the embedded store has its data in the working directory"


def test_the_guide_installs_the_files() -> None:
    guide = (ROOT / "docs/guides/systemd.md").read_text()
    for path in FOLDER.iterdir():
        assert f"deploy/systemd/{path.name}" in guide
