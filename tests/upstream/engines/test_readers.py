"""The readers of answers, with answers that no engine sends."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from controller.domain.engine_status import EngineModel
from controller.domain.worker import MAX_CAPACITY, MAX_MODELS, MAX_QUEUE_LENGTH
from controller.upstream.client import WorkerAnswer
from controller.upstream.engines import answers
from controller.upstream.engines.gauges import Gauge, Gauges
from controller.upstream.engines.reading import OtherShape, Reader, Reading
from controller.upstream.engines.refusals import refusal
from controller.upstream.engines.table import ENGINES

TOPICS = ("sign", "health", "models", "awake", "load", "capacity")
# The readers of all questions, by kind and path. Kinds with the same reader count once.
READERS: dict[str, Reader] = dict(
    {
        id(question.read): (f"{kind} {question.path}", question.read)
        for kind, engine in ENGINES.items()
        for topic in TOPICS
        for question in getattr(engine, topic)
    }.values()
)
GAUGES = [reader for reader in READERS.values() if isinstance(reader, Gauges)]
# Words that the readers look for, so that the generated answers come close to real ones.
WORDS = re.findall(r'"([a-z_]+)"', Path(answers.__file__).read_text())

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["1", "sleeping", "NaN"]),
    lambda values: st.lists(values) | st.dictionaries(st.sampled_from(WORDS) | st.text(), values, max_size=6),
    max_leaves=20,
)
names = st.sampled_from([name for gauges in GAUGES for name in gauges.names])
numbers = st.sampled_from(["1", "2.0", "-1", "NaN", "+Inf", "1e400", "9" * 400, "0x1", "1_000", ""])
labels = st.sampled_from(
    [
        "",
        "{}",
        '{engine="0"}',
        '{engine="1",sleep_state="awake"}',
        '{request_type="active"}',
        '{engine="0",reason="capacity"}',
        '{a="}"}',
        '{a="\\""}',
        '{a="\\n"}',
        "{a=b}",
        '{engine="0"',
        '{"name"}',
        '{__name__="x"}',
    ]
)
lines = st.builds("{}{} {}".format, names, labels, numbers | st.text(max_size=5)) | st.builds(
    str.__add__, names, st.text()
)
pages = st.lists(lines, max_size=8).map(lambda found: "\n".join(found).encode(errors="surrogatepass"))


def check(reader: Reader, body: bytes) -> None:
    """Fail unless an answer is read, or has another shape. What it does not say must be unknown."""
    try:
        reading = reader(body)
    except OtherShape:
        return
    assert reading.models is None or len(reading.models) <= MAX_MODELS
    for value in (reading.running, reading.waiting):
        assert value is None or (type(value) is int and 0 <= value <= MAX_QUEUE_LENGTH)
    assert reading.kv_use is None or 0 <= reading.kv_use <= 1
    assert reading.capacity is None or (type(reading.capacity) is int and 1 <= reading.capacity <= MAX_CAPACITY)
    assert reading.full in (None, True, False)
    assert reading.asleep in (None, True, False)
    if b"0" not in body and b"false" not in body and not getattr(reader, "active", ()):
        assert 0 not in (reading.running, reading.waiting)  # an answer without a 0 does not say 0


@pytest.mark.parametrize("name", READERS)
@given(body=json_values.map(lambda value: json.dumps(value).encode()) | st.binary() | pages)
@example(b"")
@example(b"\xff\xfe")
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'{"data":[{"id":"\\ud800"}]}')
@example(b"null")
def test_any_answer_is_read_or_has_another_shape(name: str, body: bytes) -> None:
    """The helper fails if a reader raises something else, or returns an impossible number."""
    check(READERS[name], body)


@pytest.mark.parametrize("name", READERS)
def test_empty_answers_say_nothing(name: str) -> None:
    """A value that an answer lacks is unknown. No reader takes it for 0."""
    for body in (b"{}", b"[]", b"null", b"", b"# HELP x y\n", b"other_metric 0\n", b'{"loads":[]}', b'{"data":[]}'):
        try:
            reading = READERS[name](body)
        except OtherShape:
            continue
        assert (reading.running, reading.waiting, reading.full, reading.kv_use, reading.capacity) == (None,) * 5


RUNNING = Gauges(running=(Gauge("new_name"), Gauge("old_name")), waiting=(Gauge("waits", {"reason": "a"}),))


@pytest.mark.parametrize(
    ("text", "running"),
    [
        ("new_name 3", 3),
        ("new_name 3\nold_name 4", 3),
        ("old_name 4", 4),
        ('new_name{engine="0"} 3\nnew_name{engine="1"} 4', 7),
        ('new_name{tp_rank="0"} 3\nnew_name{tp_rank="1"} 3', 3),
        ('new_name{dp_rank="0",tp_rank="0"} 3\nnew_name{dp_rank="1",tp_rank="0"} 2', 5),
        ('new_name{pid="7"} 3\nnew_name{pid="8"} 0', 3),
        ('new_name{priority=""} 3\nnew_name{priority="5"} 2', 3),
        ("new_name 2.5", 3),
        ("new_name 3 1790000000000", 3),
        ("new_name\t3", 3),
        ('new_name{a="x y{z}\\"\\\\",b="ü"} 3', 3),
        ("# TYPE new_name gauge\nnew_name 0", 0),
        ("new_name NaN", None),
        ("new_name +Inf", None),
        ("new_name -1", None),
        ('new_name{engine="0"} 3\nnew_name{engine="1"} NaN', None),
        ('new_name{engine="0"} 3\nnew_name{engine="1"} -3', None),
        ("new_name 1e300", None),
        ("new_name " + "9" * 500, None),
        ("new_name 1e400", None),
        ("new_name one", None),
        ("new_name", None),
        ("new_name{ 3\nother 1", None),
        ("new_name{, ={} 3", None),  # the parser raises a different error from that of other lines
        ("new_name_total 3", None),
        ("new_name_by_reason 3", None),
        ("xnew_name 3", None),
        (" new_name 3\nother 1", None),
        ("# new_name 3\nother 1", None),
    ],
)
def test_gauges_are_found_by_their_exact_names(text: str, running: int | None) -> None:
    assert RUNNING(f"other 5\n{text}\nanother 5\n".encode()).running == running


def test_waiting_requests_make_an_engine_full_unless_it_gives_their_reason() -> None:
    gauges = Gauges(running=(Gauge("runs"),), waiting=(Gauge("waits"),), full=(Gauge("waits_for_room"),))
    for text, full in (
        ("waits 0", False),
        ("waits 1", True),
        ("waits 1\nwaits_for_room 0", False),
        ("waits 1\nwaits_for_room 1", True),
        ("other 1", None),
    ):
        assert gauges(text.encode()).full is full


@pytest.mark.parametrize("part", ["running", "waiting", "active"])
def test_a_part_of_a_load_is_refused(part: str) -> None:
    """Otherwise the engine would count as idle, whatever this part says."""
    with pytest.raises(ValueError, match="need `running`, and `waiting` or `active`"):
        Gauges(**{part: (Gauge("requests"),)})


@pytest.mark.parametrize(("active", "waiting"), [(5, 2), (3, 0), (2, None), ("NaN", None)])
def test_waiting_requests_are_the_active_ones_that_do_not_run(active: object, waiting: int | None) -> None:
    gauges = Gauges(running=(Gauge("runs"),), waiting=(Gauge("waits"),), active=(Gauge("active"),))
    assert gauges(f"runs 3\nactive {active}".encode()).waiting == waiting
    assert gauges(f"runs 3\nactive {active}\nwaits 7".encode()).waiting == 7


def test_engine_works_as_long_as_one_of_its_processes_does() -> None:
    gauges = Gauges(healthy=(Gauge("healthy"),), awake=(Gauge("awake"),))
    for values, problem, asleep in (((1, 1), "", False), ((1, 0), "", False), ((0, 0), "its engine", True)):
        rows = (f'{name}{{engine="{engine}"}} {values[engine]}' for name in ("healthy", "awake") for engine in (0, 1))
        reading = gauges("\n".join(rows).encode())
        assert reading.problem.startswith(problem)
        assert bool(reading.problem) is bool(problem)
        assert reading.asleep is asleep


def test_series_without_the_wanted_labels_do_not_count() -> None:
    assert RUNNING(b'waits{reason="b"} 3\n').waiting is None
    assert RUNNING(b'waits{reason="b"} 3\nwaits{reason="a",engine="0"} 2\n').waiting == 2


@pytest.mark.parametrize("text", ["<html>new_name</html>", "{}", '[{"iter":1}]', "Not Found", "# new_name"])
def test_text_without_metrics_has_another_shape(text: str) -> None:
    with pytest.raises(OtherShape):
        RUNNING(text.encode())


@pytest.mark.parametrize("text", ["", "\n", "# HELP other x\n# TYPE other gauge\n", "other 1\n"])
def test_metrics_of_an_unused_engine_are_unknown(text: str) -> None:
    assert RUNNING(text.encode()) == Reading()


@pytest.mark.parametrize(
    "line",
    [
        'new_name{a="' + "\\" * 900 + '"} 1',
        'new_name{a="' + '\\"' * 450 + '"} 1',
        "new_name{" + ",".join(f'l{number}="v"' for number in range(100)) + "} 1",
        "new_name{" + 'a=",",' * 150 + "} 1",
        'new_name{a="' + "x" * 4_000_000 + '"} 1',
        'new_name{a="' + "\\" * 100_000 + '"} 1',
        "new_name{" + "{" * 900,
    ],
)
def test_hostile_metrics_take_little_time(line: str) -> None:
    """The parser alone would take minutes, because its time grows with the square of a line's length."""
    page = "\n".join([line] * max(1, 4_000_000 // len(line))).encode()
    begun = time.process_time()
    RUNNING(page)
    assert time.process_time() - begun < 5.0


@pytest.mark.parametrize(("size", "running"), [(900, 2), (1100, None)])
def test_longer_lines_than_engines_send_are_unknown(size: int, running: int | None) -> None:
    assert RUNNING(f'new_name{{a="{"x" * size}"}} 2'.encode()).running == running


@pytest.mark.parametrize(("number", "running"), [(1000, 2000), (2000, None)])
def test_more_lines_than_engines_send_are_unknown(number: int, running: int | None) -> None:
    rows = (f'new_name{{engine="{engine:0100}"}} 2' for engine in range(number))
    assert RUNNING("\n".join(rows).encode()).running == running


def test_gauges_of_many_engines_are_read() -> None:
    rows = [f'new_name{{engine="{number}",model_name="{"m" * 100}"}} 2.0' for number in range(512)]
    assert RUNNING("\n".join(rows).encode()).running == 1024


@pytest.mark.parametrize(
    ("parallel", "capacity"),
    [
        ({}, 8),
        ({"data_parallel_size": 4}, 32),
        ({"data_parallel_size": 4, "data_parallel_external_lb": True}, 8),
        ({"data_parallel_size": 4, "data_parallel_size_local": 2, "data_parallel_hybrid_lb": True}, 16),
        ({"data_parallel_size": "many"}, 8),
        ({"data_parallel_size": 10**6}, None),
    ],
)
def test_limit_of_vllm_applies_to_each_of_its_engines(parallel: dict[str, Any], capacity: int | None) -> None:
    config = {"scheduler_config": {"max_num_seqs": 8}, "parallel_config": parallel}
    assert answers.vllm_config(json.dumps({"vllm_config": config}).encode()).capacity == capacity


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([], Reading()),
        ([{}], Reading()),
        ([5, None], Reading()),
        ([{"num_running_reqs": 1, "num_waiting_reqs": 0}], Reading(running=1, waiting=0, full=False)),
        # A rank that does not say how many requests it has makes the sum unknown.
        ([{"num_running_reqs": 1, "num_waiting_reqs": 2}, {"num_waiting_reqs": 1}], Reading(waiting=3, full=True)),
        ([{"token_usage": 0.5}, {}], Reading()),
        ([{"num_running_reqs": True, "num_waiting_reqs": "3"}], Reading()),
        ([{"num_running_reqs": -1, "num_waiting_reqs": 1e300}], Reading()),
        (
            [{"token_usage": 0.5, "max_running_requests": 4}, {"token_usage": 0.7, "max_running_requests": None}],
            Reading(kv_use=0.7),
        ),
    ],
)
def test_loads_of_sglang_are_added_up(ranks: list[Any], expected: Reading) -> None:
    assert answers.sglang_loads(json.dumps({"loads": ranks}).encode()) == expected


@pytest.mark.parametrize(
    ("body", "asleep"), [(b'{"status":"sleeping"}', True), (b'{"status":"healthy"}', False), (b"\n", None)]
)
def test_health_of_lmdeploy_says_if_it_is_asleep(body: bytes, asleep: bool | None) -> None:
    assert answers.lmdeploy_health(body).asleep is asleep


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (503, b"", "returned status 503"),
        (500, b"<html>", "returned status 500"),
        (500, b'{"error":{"message":5}}', "returned status 500"),
        (500, b'{"error":"a"}', "returned status 500: a"),
        (500, b'{"message":" a.\\n"}', "returned status 500: a"),
        (400, b'{"detail":"a"}', "returned status 400: a"),
        (500, json.dumps({"error": "x" * 1000}).encode(), "returned status 500: " + "x" * 200),
    ],
)
def test_messages_of_engines_are_shortened_and_escaped(status: int, body: bytes, text: str) -> None:
    assert refusal(WorkerAnswer(status, {}, body)) == text


@pytest.mark.parametrize(
    ("hops", "read"),
    [
        ("a", "a"),
        ("a,b", "a,b"),
        ("", ""),
        ("a b", ""),
        (5, ""),
        (None, ""),
        (["a"], ""),
        ("a," * 7 + "a", "a," * 7 + "a"),
    ],
)
def test_hop_lists_of_controllers_are_read(hops: object, read: str) -> None:
    body = json.dumps({"data": [{"id": "m", "hops": hops}]}).encode()
    assert answers.openai_models(body) == Reading(models=(EngineModel("m", hops=read),))


def test_model_behind_too_many_clusters_is_left_out() -> None:
    body = json.dumps({"data": [{"id": "m", "hops": "a," * 8 + "a"}, {"id": "n"}]}).encode()
    assert answers.openai_models(body) == Reading(models=(EngineModel("n"),))
