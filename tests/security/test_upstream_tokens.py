"""Tokens for workers: which worker gets which, and what happens when the file changes."""

import logging
import os
from pathlib import Path

import pytest

from controller.domain.errors import SettingsError
from controller.security.upstream_tokens import UpstreamTokens


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_first_line_that_covers_a_worker_decides(tmp_path: Path) -> None:
    tokens = UpstreamTokens(
        write(
            tmp_path / "tokens",
            "# a comment",
            "",
            "http://10.0.0.5:21002/ first",
            "  10.0.0.0/8:21002-21010\tsecond",
            "*.gpu.internal third",
            "https://A.example:443 fourth  ",
            "[fd00::/8] fifth",
        )
    )
    assert {
        name: tokens.header(name)
        for name in (
            "http://10.0.0.5:21002",
            "http://10.0.0.5:21002/path",
            "http://10.0.0.6:21010",
            "http://[::ffff:10.0.0.6]:21010",
            "http://a.gpu.internal",
            "https://a.example",
            "http://[fd00::1]:7",
        )
    } == {
        "http://10.0.0.5:21002": "Bearer first",
        "http://10.0.0.5:21002/path": "Bearer second",
        "http://10.0.0.6:21010": "Bearer second",
        "http://[::ffff:10.0.0.6]:21010": "Bearer second",
        "http://a.gpu.internal": "Bearer third",
        "https://a.example": "Bearer fourth",
        "http://[fd00::1]:7": "Bearer fifth",
    }
    for other in (
        "http://10.0.0.5:21001",
        "https://10.0.0.5:21011",
        "http://11.0.0.5:21002",
        "http://a.example",
        "https://a.example/path",
        "http://a.example:443",
        "http://gpu.internal",
        "http://a.gpu.internal.evil.example",
        "http://10.0.0.5.evil.example:21002",
        "http://[fe00::1]:7",
    ):
        assert tokens.header(other) == "", other


def test_without_a_file_no_worker_gets_a_token() -> None:
    assert UpstreamTokens().header("http://10.0.0.5:21002") == ""


@pytest.mark.parametrize(
    "line",
    [
        "http://10.0.0.5:21002",
        "s3cret",
        "http://10.0.0.5:21002 s3cret more",
        "ftp://10.0.0.5 s3cret",
        "http://u:s3cret@10.0.0.5 s3cret",
        "10.0.0.5/8 s3cret",
        "http://10.0.0.5:21002 s3cret\x7f",
        "http://10.0.0.5:21002 s3cretü",
    ],
)
def test_invalid_line_is_refused_without_showing_the_token(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "tokens", "http://10.0.0.4:1 s3cret", line)
    with pytest.raises(SettingsError, match=r"tokens is wrong in line 2\. A line has a worker") as caught:
        UpstreamTokens(path)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_file_that_is_not_text_is_refused_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(b"http://h s3cret\xff")
    with pytest.raises(SettingsError, match="it is not UTF-8") as caught:
        UpstreamTokens(path)
    assert "s3cret" not in str(caught.value)


def test_changed_file_is_read_again_after_at_most_a_second(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path, clock = write(tmp_path / "tokens", "h s3cret-old"), Clock()
    tokens = UpstreamTokens(path, clock)
    assert tokens.header("http://h") == "Bearer s3cret-old"
    write(path, "h s3cret-new", "g s3cret-g")
    assert tokens.header("http://h") == "Bearer s3cret-old"
    assert tokens.header("http://g") == ""
    clock.now += 1.0
    assert tokens.header("http://h") == "Bearer s3cret-new"
    assert tokens.header("http://g") == "Bearer s3cret-g"
    replaced = write(tmp_path / "other", "h s3cret-3rd")
    os.utime(replaced, ns=(path.stat().st_mtime_ns,) * 2)
    replaced.rename(path)  # as a Secret of Kubernetes is replaced
    clock.now += 1.0
    assert tokens.header("http://h") == "Bearer s3cret-3rd"
    assert tokens.header("http://g") == ""
    status = path.stat()
    write(path, "h s3cret-4th")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as `rsync --inplace --times` writes it
    clock.now += 1.0
    assert tokens.header("http://h") == "Bearer s3cret-4th"
    assert len(caplog.messages) == 3
    assert "it has tokens for 2 workers or patterns" in caplog.messages[0]
    assert "s3cret" not in caplog.text


def test_invalid_change_is_logged_once_and_the_old_tokens_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = write(tmp_path / "tokens", "h s3cret-old"), Clock()
    tokens = UpstreamTokens(path, clock)
    write(path, "h s3cret-new and more")
    for _ in range(3):
        clock.now += 1.0
        assert tokens.header("http://h") == "Bearer s3cret-old"
    path.unlink()
    for _ in range(3):
        clock.now += 1.0
        assert tokens.header("http://h") == "Bearer s3cret-old"
    assert len(caplog.messages) == 2
    assert all("The tokens that were read before stay in use." in message for message in caplog.messages)
    assert "s3cret" not in caplog.text
    write(path, "h s3cret-new")
    clock.now += 1.0
    assert tokens.header("http://h") == "Bearer s3cret-new"
