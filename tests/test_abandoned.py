"""Bodies and applications that nobody has closed: the collector ends them, and waits for no lock."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Generator

import pytest
from pyramid.config import Configurator

from pushdemo import abandoned
from pushdemo.abandoned import Body
from pushdemo.delivery.subscription import Pace, Subscription
from pushdemo.topics.topic import Topic
from pushdemo.transports import sse
from tests.support import ROOT, wait_until


def drop(thing: object) -> None:
    """Leave it to the collector alone."""
    cycle = [thing]
    cycle.append(cycle)


def test_a_dropped_body_is_closed_in_a_thread_of_its_own() -> None:
    lock, closed = threading.Lock(), []

    def letters() -> Generator[bytes, None, None]:
        try:
            yield b"a"
            yield b"b"
        finally:
            with lock:
                closed.append(threading.get_ident())

    body = Body(letters())
    assert next(body) == b"a"
    drop(body)
    with lock:
        del body
        gc.collect()
        assert not closed
    wait_until(lambda: closed, what="its end")
    assert closed != [threading.get_ident()]
    assert not abandoned._running


@pytest.mark.parametrize("end", ["exhausted", "closed", "failed"])
def test_a_body_that_has_ended_is_held_no_more(end: str) -> None:
    def letters() -> Generator[bytes, None, None]:
        yield b"a"
        if end == "failed":
            raise LookupError

    body = Body(letters())
    assert next(body) == b"a"
    if end == "closed":
        body.close()
        body.close()
    elif end == "failed":
        with pytest.raises(LookupError):
            next(body)
    assert list(body) == []
    assert not abandoned._running


def test_a_stream_that_a_server_drops_leaves_its_topics_without_waiting_for_them() -> None:
    topics = [Topic(name, content_type="text/plain") for name in "ab"]
    for topic in topics:
        topic.publish("a")
    stream = iter(Subscription(topics, sse, Pace()))
    assert b"data: a" in next(stream)
    drop(stream)
    with topics[0].lock:
        del stream
        gc.collect()
        assert topics[0].clients == 1
    wait_until(lambda: [topic.clients for topic in topics] == [0, 0], what="the end of the stream")


def test_an_application_that_is_dropped_ends_without_waiting_for_its_own_locks() -> None:
    with Configurator(settings={}) as config:
        config.include("pushdemo")
        config.add_topic("news")
        config.make_wsgi_app()
        topics = config.registry["pushdemo.topics"]
    topic, pool = topics["news"], topics.pool
    del config, topics
    with topic.lock, pool.changed:
        gc.collect()
        assert not topic.closed
    wait_until(lambda: topic.closed, what="the end of the application")


def test_at_the_end_of_the_process_there_is_time_to_end() -> None:
    script = """
import time, weakref
from pushdemo.abandoned import end_in_thread

class Application:
    pass

def end():
    time.sleep(0.2)
    print("ended", flush=True)

application = Application()
weakref.finalize(application, end_in_thread, end)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (run.stdout, run.stderr) == ("ended\n", "")
