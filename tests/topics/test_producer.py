"""What makes a topic's messages: when a source runs, how often, and what its end and its failures do."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from pushdemo.delivery.subscription import Pace, Subscription
from pushdemo.topics.pool import SLOW, SourcePool
from pushdemo.topics.producer import LINGER, LONGEST_PAUSE, Producer, check_source
from pushdemo.topics.topic import Topic
from pushdemo.transports import jsonlines
from tests.support import PATIENCE, in_child, threads, wait_until

INTERVAL = 5.0
NAME = "produced"  # of every topic here and of none elsewhere: the source's thread is known by it


class Watched(threading.Condition):
    """A condition that knows for how long a thread has begun to wait each time, and whether it waits."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)
        self.timeouts: list[float | None] = []
        self.waits = False

    @property
    def begun(self) -> int:
        return len(self.timeouts)

    def wait(self, timeout: float | None = None) -> bool:
        self.timeouts.append(timeout)
        self.waits = True
        try:
            return super().wait(timeout)
        finally:
            self.waits = False


class Time:
    """The clock of one topic and of the pool that runs its source. It stands still until a test moves it on."""

    def __init__(self) -> None:
        self.now = 100.0
        self.topic = Topic(NAME, content_type="text/plain", clock=lambda: self.now)
        self.pool = SourcePool(clock=lambda: self.now, slow=SLOW, condition=self._watched)

    def _watched(self, lock: threading.Lock) -> Watched:
        self.changed = Watched(lock)
        return self.changed

    def jump(self, seconds: float) -> None:
        """Time passes."""
        with self.changed:
            self.now += seconds
            self.changed.notify_all()

    def pass_(self, seconds: float) -> None:
        """Time passes, and the source has done what it does about it."""
        self.settle()
        begun = self.changed.begun
        self.jump(seconds)
        wait_until(lambda: self.changed.begun > begun, what="the pool's turn")
        self.settle()

    @property
    def long_waits(self) -> set[float | None]:
        """For how long the pool waits where it does not only see to it that its workers keep up."""
        return {timeout for timeout in self.changed.timeouts if timeout is None or timeout > 1}

    def settle(self) -> None:
        """Nothing is to be done before time passes again."""
        wait_until(lambda: self.changed.waits and not self.pool.busy, what="the pool's rest")


@pytest.fixture
def time() -> Iterator[Time]:
    time = Time()
    yield time
    time.topic.close()
    wait_until(lambda: not sources(), what="the end of the source's thread")


@pytest.fixture
def topic(time: Time) -> Topic:
    return time.topic


def sources() -> list[threading.Thread]:
    return threads("pushdemo-sources") + threads(f"pushdemo-source-{NAME}")


def produce(time: Time, source: Callable[[], Any], interval: float | None = INTERVAL, **options: Any) -> Producer:
    producer = time.topic.producer = Producer(time.topic, source, interval, pool=time.pool, **options)
    return producer


def entries(topic: Topic, count: int) -> list[str]:
    """The first `count` entries, waited for: bodies, and the kinds of those that have none."""
    found = []
    for position in range(count):
        assert topic.wait(position, PATIENCE), f"only {found}"
        entry, _ = topic.following(position)
        assert entry is not None
        found.append(entry.body.decode() if entry.kind == "message" else f"({entry.kind})")
    return found


class Series:
    """A source that counts, and notes when it was asked, started and closed."""

    def __init__(self, time: Time, end: int = 1_000_000) -> None:
        self.time = time
        self.end = end
        self.asked: list[float] = []
        self.runs = 0
        self.closed = 0

    def call(self) -> str:
        self.asked.append(self.time.now)
        return f"value {len(self.asked)}"

    def generate(self) -> Iterator[str]:
        self.runs += 1
        try:
            for _ in range(self.end):
                yield self.call()
        finally:
            self.closed += 1


@pytest.fixture
def series(time: Time) -> Series:
    return Series(time)


@pytest.fixture(params=["call", "generate"])
def source(request: pytest.FixtureRequest, series: Series) -> Callable[[], Any]:
    """The series as a function and as a generator function."""
    return getattr(series, request.param)  # type: ignore[no-any-return]


def test_nothing_runs_before_the_first_client(
    time: Time, topic: Topic, series: Series, source: Callable[[], Any]
) -> None:
    produce(time, source)
    assert (series.asked, sources()) == ([], [])


def test_a_value_at_once_and_then_one_every_interval(
    time: Time, topic: Topic, series: Series, source: Callable[[], Any]
) -> None:
    produce(time, source)
    topic.join()
    assert entries(topic, 1) == ["value 1"]
    time.pass_(INTERVAL - 0.001)
    time.pass_(0.001)
    assert entries(topic, 2) == ["value 1", "value 2"]
    time.pass_(INTERVAL)
    assert entries(topic, 3) == ["value 1", "value 2", "value 3"]
    assert series.asked == [100.0, 105.0, 110.0]


def test_a_beat_that_was_missed_is_not_made_up_for(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.call)
    topic.join()
    entries(topic, 1)
    time.pass_(17)
    entries(topic, 2)
    time.pass_(INTERVAL)
    entries(topic, 3)
    assert series.asked == [100.0, 117.0, 122.0]


def test_a_beat_that_came_late_does_not_delay_the_next(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.call)
    topic.join()
    entries(topic, 1)
    time.pass_(INTERVAL + 2)
    entries(topic, 2)
    time.pass_(INTERVAL - 2)
    entries(topic, 3)
    assert series.asked == [100.0, 107.0, 110.0]


def test_one_thread_and_one_run_for_all_clients(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.generate)
    for _ in range(20):
        topic.join()
    entries(topic, 1)
    time.pass_(INTERVAL)
    entries(topic, 2)
    assert (len(sources()), series.runs, series.asked) == (1, 1, [100.0, 105.0])


def test_twenty_clients_are_given_the_same_message(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.call)
    for _ in range(20):
        topic.join()
    entries(topic, 1)
    assert len({id(topic.following(0)[0]) for _ in range(20)}) == 1


def test_a_turn_that_has_begun_has_no_other_beside_it(time: Time, topic: Topic) -> None:
    """The last client leaves and another comes while a thread is between the pool and the topic."""
    began, go_on = threading.Semaphore(0), threading.Semaphore(1)

    def source() -> str:
        began.release()
        go_on.acquire(timeout=PATIENCE)
        return "a"

    interval = SLOW / 2.5
    producer = produce(time, source, interval)
    topic.join()
    entries(topic, 1)
    assert began.acquire(timeout=PATIENCE)
    time.settle()
    with topic.lock:
        due = producer._call
        assert due
        time.jump(interval)
        wait_until(lambda: due.function is None, what="the thread")
        topic.leave()
        topic.join()
    assert began.acquire(timeout=PATIENCE)
    turns = time.changed.begun
    time.jump(interval)
    wait_until(lambda: time.changed.begun > turns, what="the pool's turn")
    assert not began.acquire(timeout=0.2)
    go_on.release()
    assert began.acquire(timeout=PATIENCE)
    go_on.release()
    assert entries(topic, 3) == ["a"] * 3


def test_the_source_stops_after_the_last_client(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.generate)
    topic.join()
    topic.join()
    entries(topic, 1)
    topic.leave()
    time.pass_(INTERVAL)
    entries(topic, 2)
    topic.leave()
    time.jump(LINGER)
    wait_until(lambda: not sources(), what="the end of the source's thread")
    assert series.closed == 1
    assert series.asked == [100.0, 105.0]


def test_nothing_is_made_while_nobody_listens(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.call)
    topic.join()
    entries(topic, 1)
    topic.leave()
    time.pass_(LINGER - 0.001)
    assert len(sources()) == 1
    assert series.asked == [100.0]


def test_a_client_that_comes_right_back_finds_the_same_run(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.generate)
    topic.join()
    entries(topic, 1)
    topic.leave()
    time.pass_(1)
    topic.join()
    time.pass_(INTERVAL - 1)
    assert entries(topic, 2) == ["value 1", "value 2"]
    assert (series.runs, series.closed) == (1, 0)


def test_a_client_that_comes_right_back_wakes_the_source(time: Time, topic: Topic, series: Series) -> None:
    """Its thread waits for the linger to be over; the next value may be due long before."""
    produce(time, series.call, linger=10 * PATIENCE)
    topic.join()
    entries(topic, 1)
    time.settle()
    topic.leave()
    wait_until(lambda: time.changed.timeouts[-1] == 10 * PATIENCE, what="the wait for the next client")
    time.now += INTERVAL
    topic.join()
    assert entries(topic, 2) == ["value 1", "value 2"]


def test_the_thread_of_a_source_wakes_when_a_value_is_due_and_no_more_often(time: Time, topic: Topic) -> None:
    produce(time, Series(time).call)
    topic.join()
    for _ in range(10):
        time.pass_(INTERVAL)
    time.settle()
    assert len(time.changed.timeouts) <= 2 * 11, "it turns without anything to do"
    assert time.long_waits <= {INTERVAL}
    topic.leave()
    wait_until(lambda: time.changed.timeouts[-1] == LINGER, what="the wait for the next client")


def test_a_topic_that_others_publish_to_does_not_hurry_its_source(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.call)
    topic.join()
    entries(topic, 1)
    time.settle()
    for number in range(20):
        topic.publish(str(number))
    time.settle()
    assert series.asked == [100.0]
    assert time.long_waits <= {INTERVAL}


def test_a_source_that_is_closed_before_its_first_client_never_runs(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.call)
    topic.close()
    topic.join()
    assert (series.asked, sources()) == ([], [])


def stopped(time: Time, topic: Topic) -> None:
    """One message was made, and the source stopped."""
    topic.join()
    entries(topic, 1)
    topic.leave()
    time.jump(LINGER)
    wait_until(lambda: not sources(), what="the end of the source's thread")


def test_a_client_that_comes_later_finds_a_new_run(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.generate)
    stopped(time, topic)
    topic.join()
    entries(topic, 2)
    assert (series.runs, series.asked) == (2, [100.0, 100.0 + LINGER])


def test_who_comes_later_is_not_shown_the_old_message_first(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.call)
    stopped(time, topic)
    topic.join()
    start = topic.newest()
    assert topic.wait(1, PATIENCE)
    message, _ = topic.following(start)
    assert message is not None
    assert message.body == b"value 2"


def test_who_comes_right_behind_a_message_is_shown_it(time: Time, topic: Topic, series: Series) -> None:
    """However soon: a listener comes before the source's thread has done anything more."""
    produce(time, series.call)
    begins: list[int] = []
    topic.listen(lambda changed: begins.append(changed.newest()))
    topic.join()
    entries(topic, 1)
    time.pass_(INTERVAL)
    assert begins == [0, 1]


def test_a_reload_does_not_hurry_the_source(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.call, interval=60.0)
    stopped(time, topic)
    topic.join()
    newest, _ = topic.following(topic.newest())
    assert newest is not None
    assert newest.body == b"value 1", "it is not old yet"
    time.pass_(60 - LINGER)
    entries(topic, 2)
    assert series.asked == [100.0, 160.0]


def test_a_message_is_old_when_the_next_is_due(time: Time, topic: Topic, series: Series) -> None:
    """Who comes at that very moment is not shown it, while the source makes the next."""
    begins: list[int] = []

    def source() -> str:
        begins.append(topic.newest())
        return series.call()

    produce(time, source, interval=LINGER)
    stopped(time, topic)
    assert topic.newest() == 1
    topic.join()
    entries(topic, 2)
    assert begins == [0, 1]
    assert series.asked == [100.0, 100.0 + LINGER]


def test_a_finished_generator_ends_the_topic(time: Time, topic: Topic) -> None:
    series = Series(time, end=2)
    produce(time, series.generate, interval=None)
    topic.join()
    assert entries(topic, 2) == ["value 1", "value 2"]
    wait_until(lambda: topic.ended, what="the end of the topic")
    wait_until(lambda: not sources(), what="the end of the source's thread")
    assert series.closed == 1


def test_a_finished_source_is_not_run_again(time: Time, topic: Topic) -> None:
    series = Series(time, end=1)
    produce(time, series.generate, interval=None)
    topic.join()
    wait_until(lambda: topic.ended, what="the end of the topic")
    topic.leave()
    topic.join()
    assert series.runs == 1


def test_a_generator_without_an_interval_sets_its_own_pace(time: Time, topic: Topic) -> None:
    produce(time, Series(time, end=50).generate, interval=None)
    topic.join()
    assert entries(topic, 50)[-1] == "value 50"
    assert time.now == 100.0


def test_the_application_closes_a_running_generator(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.generate)
    topic.join()
    entries(topic, 1)
    topic.close()
    wait_until(lambda: not sources(), what="the end of the source's thread")
    assert series.closed == 1


class Failing:
    """A source that fails at the calls that it is told to fail at; the first is 1."""

    def __init__(self, time: Time, *failures: int) -> None:
        self.time = time
        self.failures = failures
        self.asked: list[float] = []

    def call(self) -> str:
        self.asked.append(self.time.now)
        if len(self.asked) in self.failures:
            raise OSError("the password is swordfish")
        return f"value {len(self.asked)}"

    def generate(self) -> Iterator[str]:
        while True:
            yield self.call()


def attempts(time: Time, source: Failing, pauses: list[float]) -> None:
    """Let so many seconds pass in turn, each up to one more attempt, and none before."""
    for pause in pauses:
        before = len(source.asked)
        time.pass_(pause - 0.001)
        assert len(source.asked) == before, f"tried before {pause} s were over"
        time.pass_(0.001)
        assert len(source.asked) == before + 1, f"not tried when {pause} s were over"


@pytest.mark.parametrize("kind", ["call", "generate"])
def test_a_failing_source_is_retried_with_a_growing_pause(time: Time, topic: Topic, kind: str) -> None:
    source = Failing(time, *range(1, 100))
    produce(time, getattr(source, kind))
    topic.join()
    wait_until(lambda: topic.head, what="the notice")
    attempts(time, source, [5, 10, 20, 40, LONGEST_PAUSE, LONGEST_PAUSE])


def test_a_failing_source_is_told_once_and_logged_once(
    time: Time, topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    source = Failing(time, 2, 3, 4)
    produce(time, source.call)
    with caplog.at_level(logging.INFO, "pushdemo"):
        topic.join()
        entries(topic, 1)
        attempts(time, source, [5, 5, 10, 20])
        assert entries(topic, 3) == ["value 1", "(failing)", "value 5"]
    (record,) = caplog.records
    assert record.getMessage() == "the source of topic produced failed; next try in 5 s"
    assert record.exc_info is not None
    assert "swordfish" in str(record.exc_info[1])


def test_who_comes_to_a_source_that_has_only_failed_is_told(time: Time, topic: Topic) -> None:
    produce(time, Failing(time, *range(1, 100)).call)
    topic.join()
    assert entries(topic, 1) == ["(failing)"]
    time.settle()
    assert topic.newest() == 0


def test_a_source_that_fails_again_is_told_again(time: Time, topic: Topic) -> None:
    source = Failing(time, 1, 3)
    produce(time, source.call)
    topic.join()
    entries(topic, 1)
    attempts(time, source, [5, 5, 5])
    assert entries(topic, 4) == ["(failing)", "value 2", "(failing)", "value 4"]


def test_a_value_that_is_no_body_is_a_failure_and_no_end(time: Time, topic: Topic) -> None:
    values = iter([7, "text"])
    produce(time, lambda: next(values))
    topic.join()
    entries(topic, 1)
    time.pass_(INTERVAL)
    assert entries(topic, 2) == ["(failing)", "text"]


def test_a_failing_source_stops_too_when_nobody_listens(time: Time, topic: Topic) -> None:
    produce(time, Failing(time, *range(1, 100)).call)
    topic.join()
    entries(topic, 1)
    topic.leave()
    time.jump(LINGER)
    wait_until(lambda: not sources(), what="the end of the source's thread")


def test_an_error_while_a_generator_is_closed_is_logged(
    time: Time, topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    def source() -> Iterator[str]:
        try:
            yield "value"
        finally:
            raise OSError("while closing")

    produce(time, source)
    topic.join()
    entries(topic, 1)
    topic.close()
    wait_until(lambda: not sources(), what="the end of the source's thread")
    assert [record.getMessage() for record in caplog.records] == ["a source's generator raised while it was closed"]


def test_the_source_runs_within_the_context_that_it_is_given(time: Time, topic: Topic) -> None:
    place: ContextVar[str] = ContextVar("place", default="nowhere")

    @contextmanager
    def around() -> Iterator[None]:
        token = place.set("the application")
        yield
        place.reset(token)

    produce(time, place.get, around=around)
    topic.join()
    assert entries(topic, 1) == ["the application"]


async def coroutine() -> str:
    return "value"


async def asynchronous() -> Any:
    yield "value"


@pytest.mark.parametrize("source", [coroutine, asynchronous])
def test_an_asynchronous_source_is_refused(source: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="the source of topic produced must be a function or a generator function"):
        check_source(NAME, source, INTERVAL)


@pytest.mark.parametrize("interval", [None, 0, -1.0])
def test_a_function_without_an_interval_is_refused(interval: float | None) -> None:
    with pytest.raises(ValueError, match="interval"):
        check_source(NAME, lambda: "value", interval)


@pytest.mark.parametrize("interval", [-1.0, float("nan"), float("inf")])
def test_an_interval_that_is_none_is_refused(interval: float) -> None:
    with pytest.raises(ValueError, match="interval"):
        check_source(NAME, asks, interval)


def asks() -> Iterator[str]:
    yield "value"


def test_a_source_with_a_long_interval_stops_no_later() -> None:
    topic, pool = Topic(NAME, content_type="text/plain"), SourcePool()
    closed = threading.Event()

    def source() -> Iterator[str]:
        try:
            yield "value"
        finally:
            closed.set()

    topic.producer = Producer(topic, source, 10 * PATIENCE, pool=pool, linger=0.01)
    topic.join()
    entries(topic, 1)
    topic.leave()
    try:
        assert closed.wait(PATIENCE), "it waits for its interval to be over"
    finally:
        topic.close()


def test_who_starts_a_series_gets_it_from_the_beginning() -> None:
    pool = SourcePool()
    for _ in range(300):  # the source's thread must never be ahead of the client that starts it
        topic = Topic(NAME, content_type="text/plain")
        topic.producer = Producer(topic, lambda: (yield from "abc"), None, pool=pool)
        body = b"".join(Subscription(topic, jsonlines, Pace()))
        assert [json.loads(line).get("content") for line in body.splitlines()] == [None, None, "a", "b", "c", None]


def test_a_forked_process_runs_the_source_in_a_thread_of_its_own(time: Time, topic: Topic, series: Series) -> None:
    produce(time, series.generate)
    topic.join()
    assert entries(topic, 1) == ["value 1"]

    def made_in_child() -> list[str]:
        topic.join()
        time.pass_(INTERVAL)
        return entries(topic, 2)

    assert in_child(made_in_child) == ["value 1", "value 2"]
    topic.leave()


@pytest.mark.parametrize(
    "error", [SystemExit(2), GeneratorExit(), KeyboardInterrupt(), MemoryError(), StopAsyncIteration()]
)
@pytest.mark.parametrize("generator", [False, True])
def test_whatever_a_source_raises_is_a_failure_and_it_is_tried_again(
    error: BaseException, generator: bool, caplog: pytest.LogCaptureFixture
) -> None:
    topic, calls = Topic(NAME, content_type="text/plain"), []

    def call() -> str:
        calls.append(None)
        if len(calls) <= 3:
            raise error
        return "value"

    def generate() -> Iterator[str]:
        while True:
            yield call()

    topic.producer = Producer(topic, generate if generator else call, 0.01, pool=SourcePool(), linger=0.01)
    topic.join()
    try:
        assert entries(topic, 2) == ["(failing)", "value"]
        assert len([record for record in caplog.records if record.exc_info]) == 1
    finally:
        topic.close()


def test_a_generator_that_cannot_be_closed_leaves_its_topic_startable(caplog: pytest.LogCaptureFixture) -> None:
    topic, closed = Topic(NAME, content_type="text/plain"), threading.Semaphore(0)

    def source() -> Iterator[str]:
        try:
            while True:
                yield "value"
        finally:
            closed.release()
            raise SystemExit(3)

    topic.producer = Producer(topic, source, 0.01, pool=SourcePool(), linger=0.0)
    for number in range(3):
        topic.join()
        assert topic.wait(topic.head, PATIENCE), number
        topic.leave()
        assert closed.acquire(timeout=PATIENCE)
    topic.close()
    wait_until(lambda: len(caplog.records) == 3)


@pytest.mark.parametrize("kind", ["call", "generator", "own pace"])
@pytest.mark.parametrize("missing", [1, 2, 3, 9])
def test_a_source_for_which_the_system_has_no_thread_is_started_when_there_is_one(
    kind: str, missing: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients wait for it meanwhile, and the next one has it tried again, or whoever holds those that there are."""

    def generate() -> Iterator[str]:
        while True:
            yield "value"
            threading.Event().wait(0.01)

    topic = Topic(NAME, content_type="text/plain")
    source = {"call": lambda: "value", "generator": generate, "own pace": generate}[kind]
    topic.producer = Producer(topic, source, 0.0 if kind == "own pace" else 0.01, pool=SourcePool(), linger=0.01)
    started, start = [], threading.Thread.start

    def start_later(thread: threading.Thread) -> None:
        started.append(thread)
        if len(started) <= missing:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    topic.join()
    topic.join()
    assert topic.clients == 2
    try:
        wait_until(lambda: topic.start_again() or topic.number)
        assert entries(topic, topic.head)[-1] == "value"
        assert 1 <= len(caplog.records) <= 3
    finally:
        topic.close()


# -- many sources in few threads


place: ContextVar[str] = ContextVar("place", default="nowhere")


def topics(count: int, pool: SourcePool, source: Callable[[int], Any], interval: float, **options: Any) -> list[Topic]:
    """So many topics, each with a client and the source of its number."""
    made = []
    for number in range(count):
        topic = Topic(f"{NAME}.{number}", content_type="text/plain")
        topic.producer = Producer(topic, partial(source, number), interval, pool=pool, **options)
        topic.join()
        made.append(topic)
    return made


def close(topics: list[Topic]) -> None:
    for topic in topics:
        topic.close()
    wait_until(lambda: not sources(), what="the end of the pool")


def test_a_generator_keeps_its_context_whichever_thread_runs_its_next_step() -> None:
    pool, seen = SourcePool(threads=4), set()

    def source(number: int) -> Iterator[str]:
        place.set(f"at {number}")
        while True:
            seen.add((number, threading.get_ident()))
            yield place.get()
            threading.Event().wait(0.001)  # so that other workers are needed

    made = topics(20, pool, source, 0.005)
    for number, topic in enumerate(made):
        assert set(entries(topic, 8)) == {f"at {number}"}
    assert len({thread for _, thread in seen}) > 1
    assert len(seen) > 20, "some have changed their thread"
    assert place.get() == "nowhere"
    close(made)


def test_hundreds_of_sources_share_the_threads_of_the_pool() -> None:
    pool, seen = SourcePool(threads=4), set()

    def source(number: int) -> str:
        seen.add(threading.get_ident())
        return str(number)

    made = topics(500, pool, source, 0.2)
    for number, topic in enumerate(made):
        assert entries(topic, 2) == [str(number)] * 2
    assert len(seen) <= 3, "the fourth watches the time"
    close(made)


def test_sources_that_begin_together_do_not_go_on_together(time: Time) -> None:
    """The second value comes in the second half of the interval, and from then on each keeps to its beat."""
    dues = []
    for number in range(200):
        topic = Topic(f"{NAME}.{number}", content_type="text/plain", clock=time.topic.clock)
        topic.producer = Producer(topic, lambda: "value", INTERVAL, pool=time.pool, spread=True)
        topic.join()
        entries(topic, 1)
        wait_until(lambda: not time.pool.busy)
        dues.append(topic.producer.due - time.now)
        topic.close()
    assert min(dues) >= INTERVAL / 2
    assert max(dues) <= INTERVAL
    assert len({round(due / INTERVAL * 10) for due in dues}) == 6, "they are all over it"


def test_a_source_that_never_returns_or_that_raises_leaves_the_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    pool, release = SourcePool(threads=2, slow=0.02), threading.Event()

    def source(number: int) -> str:
        if number == 0:
            release.wait(PATIENCE)
        if number == 1:
            raise OSError("broken")
        return str(number)

    made = topics(5, pool, source, 0.02)
    for topic in made[2:]:
        assert topic.wait(3, PATIENCE)
    assert made[0].head == 0
    assert entries(made[1], 1) == ["(failing)"]
    release.set()
    assert entries(made[0], 1) == ["0"]
    close(made)


@pytest.mark.heavy
def test_sources_that_pace_themselves_have_threads_up_to_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    pool, go_on = SourcePool(limit=2), threading.Event()

    def source(number: int) -> Iterator[str]:
        yield "first"
        go_on.wait(PATIENCE)

    made = topics(3, pool, source, 0)
    for topic in made[:2]:
        assert entries(topic, 1) == ["first"]
    assert entries(made[2], 1) == ["(failing)"]
    assert "pushdemo.sources.limit" in caplog.text
    assert [topic.producer.has_room for topic in made if topic.producer] == [True, True, True], "they are awake"
    late = Topic(f"{NAME}.late")
    late.producer = Producer(late, partial(source, 9), 0, pool=pool)
    assert not late.producer.has_room
    go_on.set()
    assert entries(made[2], 2) == ["(failing)", "first"], "it is tried again when a thread is free"
    close(made)


def test_a_client_that_comes_while_the_source_is_slow_waits_for_it_and_no_second_run_begins() -> None:
    pool, begun, go_on = SourcePool(), threading.Semaphore(0), threading.Event()
    runs = []

    def source() -> str:
        runs.append(1)
        begun.release()
        go_on.wait(PATIENCE)
        return "value"

    topic = Topic(NAME, content_type="text/plain")
    topic.producer = Producer(topic, source, 1000.0, pool=pool)
    topic.join()
    assert begun.acquire(timeout=PATIENCE)
    for _ in range(3):
        topic.leave()
        topic.join()
    go_on.set()
    assert entries(topic, 1) == ["value"]
    assert runs == [1]
    close([topic])


def test_of_one_pattern_one_failure_is_logged_in_a_while(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    """A client may open many topics whose source fails: each client is told, the log once."""

    def fail() -> str:
        raise OSError("broken")

    def client(name: str, pattern: str) -> Topic:
        topic = Topic(name, pattern=pattern, clock=time.topic.clock)
        topic.producer = Producer(topic, fail, INTERVAL, pool=time.pool)
        topic.join()
        assert entries(topic, 1) == ["(failing)"]
        topic.close()
        return topic

    for number in range(20):
        client(f"{NAME}.~{number}", f"{NAME}.{{x}}")
    assert len(caplog.messages) == 1
    client(f"other.~{'x' * 500}", "other.{x}")
    assert len(caplog.messages) == 2, "another pattern's"
    assert len(caplog.messages[1]) < 200, "a long value is shortened"
    time.now += 10
    client(f"{NAME}.~1", f"{NAME}.{{x}}")
    assert len(caplog.messages) == 3
