"""All tables fit the terminal, and say what they leave out."""

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from controller.cli import tables as tables_module
from controller.cli.capacities import capacities_table
from controller.cli.checks.finding import ok, problem
from controller.cli.configuration import Effective, settings_table
from controller.cli.doctor import findings_table
from controller.cli.explanation import candidates_table
from controller.cli.models import models_of, models_table
from controller.cli.replicas import differences_table, differing_settings, replicas_table
from controller.cli.routes import routes_table
from controller.cli.short_names import short_names
from controller.cli.spread import spread_table
from controller.cli.tables import Column, bar, fit_table
from controller.cli.tokens import tokens_table
from controller.cli.worker import worker_table
from controller.cli.workers import workers_table
from controller.settings import all_settings
from tests.cli.samples import candidate, listed, replica

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
COLOR = re.compile(r"\x1b\[(?:\d+;)*3[0-7]m")
URL, MODEL = "http://10.0.0.5:21002", "vicuna-7b-v1.5"
LONG_URL, LONG_MODEL = (
    "http://worker-17.some-cluster.example.com:21002",
    "meta-llama/Llama-3.1-70B-Instruct-" + "x" * 99,
)
REPLICAS = [replica("host-1:21001/17", port=1, lease_time=600.0), replica("host-2:21001/18", "2.0", lease_time=60.0)]


def tables(url: str, model: str) -> dict[str, Callable[[Console], RenderableType]]:
    workers = [listed(url, model, "m"), listed("http://h:1", model, draining=True, stalled_for=75.0)]
    explanation = {"model": model, "workers": 3, "candidates": [candidate(url), candidate("b")], "excluded": []}
    token = {"plane": "worker", "name": "gpu-rack-1", "source": "created", "workers": [url, "*.b"], "models": [model]}
    route = {"model": "m", "targets": {model: 90, "n": 10}, "fallbacks": [model], "unserved": ["n"]}
    return {
        "workers": lambda console: workers_table(workers, console),
        "worker": lambda console: worker_table(workers[0], console, 60.0),
        "models": lambda console: models_table(models_of(workers), console),
        "replicas": lambda console: replicas_table(REPLICAS, console),
        "differences": lambda console: differences_table(differing_settings(REPLICAS), console),
        "explain": lambda console: candidates_table(explanation, console),
        "dispatch": lambda console: spread_table(model, {url: 90, "http://h:1": 10}, console),
        "doctor": lambda console: findings_table([ok("a", url), problem("models", model, f"See {url}.")], console),
        "config": lambda console: settings_table([Effective(each, url, "default") for each in all_settings()], console),
        "capacities": lambda console: capacities_table([{"worker_name": url, "capacity": 5}], console),
        "routes": lambda console: routes_table([route], console),
        "tokens": lambda console: tokens_table([token], console),
    }


def lines_of(table: Callable[[Console], RenderableType], width: int, **options: Any) -> list[str]:
    printed = io.StringIO()
    console = Console(width=width, file=printed, **options)
    console.print(table(console))
    return printed.getvalue().splitlines()


@pytest.mark.parametrize("name", tables(URL, MODEL))
@pytest.mark.parametrize("width", [80, 100, 200])
def test_names_of_usual_length_are_not_broken(name: str, width: int) -> None:
    lines = lines_of(tables(URL, MODEL)[name], width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).replace(",", "").split()
    if name in ("workers", "worker", "explain", "dispatch", "capacities", "tokens"):
        assert URL in words
    if name in ("workers", "worker", "models", "tokens"):
        assert MODEL in words
    if name in ("replicas", "differences"):
        assert {"host-1:21001/17", "host-2:21001/18"} <= set(words)


@pytest.mark.parametrize("name", tables(URL, MODEL))
@pytest.mark.parametrize("width", [30, 40, 60, 80])
def test_no_line_is_longer_than_the_terminal(name: str, width: int) -> None:
    lines = lines_of(tables(LONG_URL, LONG_MODEL)[name], width)
    assert max(map(len, lines)) <= width
    text = "".join("".join(lines).split())
    assert any(part in text for part in ("lease_time", "host-1", "http:", "work", "meta", "gpu-rack-1")), text


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_of_a_screen_has_one_line_for_each_row(width: int) -> None:
    workers = [listed(LONG_URL, LONG_MODEL, *map(str, range(40))) for _ in range(50)]
    for rows in (1, 7, 49, 60):
        lines = lines_of(lambda console, rows=rows: workers_table(workers, console, 60.0, rows), width)  # type: ignore[misc]
        assert len(lines) == min(rows, 50) + 5
        assert max(map(len, lines)) <= width
        assert ("the first" in lines[0]) is (rows < 50)
        assert "Not shown" not in "".join(lines)


@pytest.mark.parametrize("name", tables(URL, MODEL))
def test_colors_are_only_for_terminals_that_want_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tables(URL, MODEL)[name]
    plain = lines_of(table, 100)
    assert "\x1b" not in "".join(plain)
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = lines_of(table, 100, force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOR.search("".join(lines_of(table, 100, force_terminal=True, color_system="standard")))
    if name in ("workers", "models", "replicas", "differences", "explain", "doctor"):
        assert COLOR.search("".join(colored))


def test_states_are_words_and_not_only_colors() -> None:
    workers = [
        listed("http://a", "m", failing="polls"),
        listed("http://b", "m", stalled_for=75.2),
        listed("http://c", "m", draining=True),
        listed("http://d", "m", draining=True, drained=True, stalled_for=75.2),
        listed("http://e", "m", draining=True, stalled_for=600.0),
        listed("http://f", "m", stalled_for=59.9),
    ]
    lines = lines_of(lambda console: workers_table(workers, console), 100)
    states = [line.split("3")[0].split(maxsplit=1)[1].strip() for line in lines[4:10]]
    assert states == ["failing", "stalled 75 s", "draining", "drained", "draining 10 m", "serving"]


def test_a_column_that_does_not_fit_is_named_below() -> None:
    columns = [Column("name", breaks=True), Column("first"), Column("second")]
    rows = [{"name": "n" * 20, "first": "1" * 20, "second": "2" * 20}]
    wide = lines_of(lambda console: fit_table("t", columns, 1, rows, console), 67)
    assert "2" * 20 in "".join(wide)
    narrow = lines_of(lambda console: fit_table("t", columns, 1, rows, console), 66)
    assert "2" * 20 not in "".join(narrow)
    assert "Not shown for lack of space: second." in " ".join(" ".join(narrow).split())


@pytest.mark.parametrize(
    ("encoding", "model", "shown"),
    [
        ("utf-8", "meta-llama/Llama-3.1-70B-Instruct", "meta-llam…B-Instruct"),
        ("ascii", "meta-llama/Llama-3.1-70B-Instruct", "meta-lla...-Instruct"),
        ("utf-8", "名前" * 20, "名前名前…前名前名前"),
        ("utf-8", "two words " * 9, "two words…two words"),
        ("utf-8", "short", "short"),
    ],
)
def test_long_names_are_shortened_in_the_middle(encoding: str, model: str, shown: str) -> None:
    printed = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(width=39, file=printed)
    console.print(models_table(models_of([listed(URL, model, queue_length=50)]), console))
    printed.seek(0)
    text = printed.read()
    assert shown in text
    assert max(map(cell_len, text.splitlines())) <= 39
    assert len([line for line in text.splitlines() if "50" in line]) == 1
    assert ("Long names are shortened." in " ".join(text.split())) is (model != "short")


@pytest.mark.parametrize(
    ("share", "encoding", "shown"),
    [(0, "utf-8", ""), (0.001, "utf-8", "█"), (0.5, "utf-8", "█████"), (7, "utf-8", "█" * 10), (0.5, "ascii", "#####")],
)
def test_bars(share: float, encoding: str, shown: str) -> None:
    assert bar(share, 10, encoding) == shown


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_long_table_looks_like_a_short_one(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [
        listed(f"http://10.0.0.{number}:21002", MODEL, failing="polls" if number == 3 else None)
        for number in range(600)
    ]

    def drawn() -> list[str]:
        printed = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        console = Console(width=250, file=printed, force_terminal=True, color_system="standard")
        console.print(workers_table(workers, console))
        printed.seek(0)
        return printed.read().splitlines()

    long = [COLOR.sub("", line) for line in drawn()]
    monkeypatch.setattr(tables_module, "_MANY", 1_000)
    short = [COLOR.sub("", line) for line in drawn()]
    assert len(long) == len(short) == 605
    assert [ESCAPE.sub("", line) for line in long] == [ESCAPE.sub("", line) for line in short]


def names_in(lines: list[str], before: str) -> list[str]:
    """Return the cells of the first column, which ends where the heading `before` begins."""
    end = lines[2].index(before)
    return [line[:end].strip() for line in lines[4 : lines.index("".ljust(len(lines[3])), 4)] if line[:end].strip()]


@pytest.mark.parametrize("rows", [None, 20])
@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("model", ["vicuna-7b-v1.5", "meta-llama/Llama-3.1-70B-Instruct", "m" * 500])
@pytest.mark.parametrize(
    "pattern", ["http://127.40.0.{}:31001", "http://gpu-rack-1-node-{}.prod.example.org:21002", "http://{0}.h{0}.org/x"]
)
def test_different_workers_never_look_the_same(pattern: str, model: str, width: int, rows: int | None) -> None:
    """Also beside a stalled worker, whose state is longer, and a model with a very long name."""
    workers = [
        listed(
            pattern.format(number), model if number == 41 else "vicuna-7b", stalled_for=75.0 if number == 47 else None
        )
        for number in range(41, 57)
    ]
    lines = lines_of(lambda console: workers_table(workers, console, 60.0, rows), width)
    assert max(map(len, lines)) <= width
    shown = names_in(lines, "state")
    assert len(set(shown)) == len(shown) == 16
    assert lines[2].split()[:5] == ["worker", "state", "queue", "slots", "models"]
    if "example" not in pattern:
        assert [name.removeprefix("http://") for name in shown] == [
            pattern.format(number).removeprefix("http://") for number in range(41, 57)
        ]
    elif width == 80:
        assert all(f"rack-1-node-{number}" in name for number, name in enumerate(shown, 41))


def test_the_scheme_is_left_out_only_for_all_workers() -> None:
    workers = [listed(f"{scheme}://worker-17.some-cluster.example.com:21002", MODEL) for scheme in ("http", "https")]
    assert names_in(lines_of(lambda console: workers_table(workers[:1], console), 200), "state") == [
        "http://worker-17.some-cluster.example.com:21002"
    ]
    assert names_in(lines_of(lambda console: workers_table(workers[:1], console), 80), "state") == [
        "worker-17.some-cluster.example.com:21002"
    ]
    shown = names_in(lines_of(lambda console: workers_table(workers, console), 80), "state")
    assert [name.partition(":")[0] for name in shown] == ["http", "https"]


@pytest.mark.parametrize("width", [60, 80])
def test_models_show_what_is_wrong_before_empty_columns(width: int) -> None:
    workers = [
        listed(URL, "a-model-whose-name-has-forty-nine-characters-in-all", capacity=None, failing="polls"),
        listed(URL, "m", capacity=None),
    ]
    lines = lines_of(lambda console: models_table(models_of(workers), console), width)
    assert lines[2].split()[:4] == ["model", "workers", "queue", "problems"]
    assert not {"slots", "load"} & set(" ".join(lines).replace(",", "").split())
    assert "none" in " ".join(lines)


def test_a_long_name_hides_no_column_that_has_room() -> None:
    workers = [listed(URL, "m" * 500), listed(URL, "vicuna-7b")]
    lines = lines_of(lambda console: models_table(models_of(workers), console), 80)
    assert lines[2].split() == ["model", "workers", "queue", "load", "slots"]
    assert len(lines[4].split()[0]) >= 35


def test_in_pipes_each_model_has_one_line() -> None:
    workers = [listed(URL, "m" * 500, failing="polls", stalled_for=75.0), listed(URL, "n")]
    lines = lines_of(lambda console: models_table(models_of(workers), console), tables_module.PIPE_WIDTH)
    assert ["m" * 500 in line and "none serves, 1 failing, 1 stalled" in line for line in lines].count(True) == 1
    assert len(lines) == 2 + 5


@given(
    st.lists(st.text("ab.:名", max_size=40), unique=True, max_size=30),
    st.integers(8, 20),
    st.sampled_from(["…", "..."]),
)
def test_short_names_are_different_and_fit(names: list[str], width: int, ellipsis: str) -> None:
    forms = short_names(names, width, ellipsis)
    assert set(forms) == set(names)
    assert len(set(forms.values())) == len(names)
    assert max(map(cell_len, forms.values()), default=0) <= width
