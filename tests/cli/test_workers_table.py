"""The table of `controller workers` fits the terminal."""

import io
from typing import Any

import pytest
from rich.console import Console

from controller.cli.workers import workers_table
from tests.cli.samples import listed

LONG = "http://worker-17.some-cluster.example.com:21002"
MODEL = "meta-llama/Llama-3.1-70B-Instruct"
COLUMNS = ["worker", "state", "queue", "slots", "models", "leased", "heartbeat", "expires in", "speed"]


def shown(width: int, *workers: dict[str, Any]) -> list[str]:
    printed = io.StringIO()
    console = Console(width=width, file=printed)
    console.print(workers_table(workers, console))
    return printed.getvalue().splitlines()


def headings(lines: list[str]) -> list[str]:
    return lines[2].replace("expires in", "expires-in").split()


def test_wide_terminal_shows_all_columns() -> None:
    lines = shown(120, listed("http://10.0.0.5:21002", "vicuna-7b", expires_in=None))
    assert headings(lines) == [column.replace(" ", "-") for column in COLUMNS]
    row = lines[4].split()
    assert row == [
        "http://10.0.0.5:21002",
        "serving",
        "3",
        "5",
        "set",
        "vicuna-7b",
        "2",
        "12.3",
        "s",
        "ago",
        "never",
        "1",
    ]
    assert "Not shown" not in "".join(lines)


def test_80_columns_show_the_important_columns_and_name_the_others() -> None:
    lines = shown(80, listed("http://10.0.0.5:21002", "vicuna-7b"), listed("http://10.0.0.6:21002", "m", draining=True))
    assert max(map(len, lines)) <= 80
    assert headings(lines) == COLUMNS[: len(headings(lines))]
    assert len(headings(lines)) >= 6
    for text in ("http://10.0.0.5:21002", "serving", "vicuna-7b", "draining"):
        assert sum(text in line.split() for line in lines) == 1
    left_out = ", ".join(COLUMNS[len(headings(lines)) :])
    assert f"Not shown for lack of space: {left_out}." in " ".join(lines)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_only_long_names_are_shortened_and_their_ends_are_kept(width: int) -> None:
    lines = shown(width, listed(LONG, MODEL, "m", capacity=1_000_000, queue_length=1_234_567, failing=True))
    assert max(map(len, lines)) <= width
    assert headings(lines) == COLUMNS[:5]
    rows = lines[4 : lines.index("".ljust(width), 4)]
    assert len(rows) <= 2
    for text in ("failing", "1234567", "1000000 set"):
        assert text in rows[0]
    begin, end = lines[2].index("state"), lines[2].index("models")
    models = " ".join(row[end:].strip() for row in rows)
    assert models.endswith(", m")
    for name, short in ((LONG.removeprefix("http://"), rows[0][:begin].strip()), (MODEL, models.removesuffix(", m"))):
        first, _, last = short.partition("…")
        assert name.startswith(first)
        assert name.endswith(last)
        assert len(first) >= 4
    assert len("".join(rows)) >= len(rows) * width, "all the room is used"
    assert "Long names are shortened. `| cat` shows everything." in " ".join(" ".join(lines).split())


def test_columns_are_left_out_only_where_a_word_would_be_broken() -> None:
    workers = [
        listed("http://10.0.0.5:21002", "a", "vicuna-7b-v1.5"),
        listed("http://h:1", "m", queue_length=123_456, draining=True, drained=True),
    ]
    words = {word for worker in workers for word in (worker["worker_name"], *worker["model_names"])}
    numbers: list[int] = []
    for width in range(130, 69, -1):
        lines = shown(width, *workers)
        assert max(map(len, lines)) <= width
        assert headings(lines) == [column.replace(" ", "-") for column in COLUMNS[: len(headings(lines))]]
        assert words <= set(" ".join(lines[4:]).replace(",", "").split()), width
        for text in ("123456", "5 set", "drained"):
            assert any(text in line for line in lines)
        if numbers and numbers[-1] > len(headings(lines)):
            before = shown(width + 1, *workers)
            assert len(before[3].rstrip()) >= width, "there was room for another column"
        numbers.append(len(headings(lines)))
    assert numbers == sorted(numbers, reverse=True)
    assert set(numbers) == {5, 6, 7, 8, 9}


def test_table_without_workers_has_all_headings() -> None:
    lines = shown(100)
    assert lines[0].strip() == "0 live workers"
    assert len(headings(lines)) == len(COLUMNS)
