"""Tabs of one browser that share a connection: in Chromium, against a topic that counts who is connected."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.static.conftest import chromium_driver
from tests.static.engines import BOUND, Browser, Watch
from tests.static.formats import STREAMS, Sent, poll
from tests.static.scripts import never, refuses, says
from tests.static.wire import Exchange, Wire

FORM = STREAMS["multipart"]


class Topic:
    """A topic on the wire: streams and polls that go on after any id of its epoch."""

    def __init__(self) -> None:
        self.epoch = "e"
        self.count = 0
        self.streams = 0  # connected now
        self.polls = 0  # in all
        self.most = 0  # connected at once
        self.leader = ""  # the page that has begun the last stream
        self.changed = threading.Condition()  # guards all of these

    def publish(self, count: int = 1) -> None:
        with self.changed:
            self.count += count
            self.changed.notify_all()

    def restart(self, count: int) -> None:
        """Another life of the topic, which nobody's id is of."""
        with self.changed:
            self.epoch, self.count = f"{self.epoch}x", count
            self.changed.notify_all()

    def serve(self, exchange: Exchange) -> None:
        if exchange.headers["Accept"] == "application/json":
            return self.poll(exchange)
        with self.changed:
            self.streams += 1
            self.leader = exchange.headers["Referer"]
            self.changed.notify_all()
            self.most = max(self.most, self.streams)
        try:
            self.stream(exchange)
        finally:
            with self.changed:
                self.streams -= 1
                self.changed.notify_all()
        return None

    def begin(self, exchange: Exchange) -> tuple[str, int, bool]:
        """The epoch, the number to go on after, and whether this is a reset."""
        epoch, _, number = exchange.last_event_id.rpartition("-")
        if epoch == self.epoch:
            return epoch, int(number), False
        start = 0 if exchange.last_event_id == "earliest" else max(0, self.count - 1)
        return self.epoch, start, exchange.last_event_id not in ("", "earliest")

    def message(self, number: int) -> Sent:
        return Sent(f"{self.epoch}-{number}", f"<message>{number}</message>")

    def stream(self, exchange: Exchange) -> None:
        epoch, sent, missed = self.begin(exchange)
        exchange.stream(FORM.content_type, FORM.opening)
        if missed:
            exchange.write(FORM.reset_to(f"{epoch}-{sent}"))
        while not exchange.gone_within(0.005):
            with self.changed:
                if self.epoch != epoch:
                    epoch, sent = self.epoch, max(0, self.count - 1)
                    exchange.write(FORM.reset_to(f"{epoch}-{sent}"))
                news = [self.message(number) for number in range(sent + 1, self.count + 1)]
                sent = self.count
            exchange.write(*map(FORM.message, news))

    def poll(self, exchange: Exchange) -> None:
        with self.changed:
            self.polls += 1
            _, sent, missed = self.begin(exchange)
            upto = min(self.count, sent + 30)  # in pieces
            messages = [self.message(number) for number in range(sent + 1, upto + 1)]
            more = {"reset": True} if missed else {}
            exchange.answer(200, "application/json", poll("ready", *messages, **more))

    def wait(self, condition: Callable[[], Any]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, BOUND), (self.streams, self.count)


class Tab(Browser):
    """One window among several of a driver."""

    def __init__(self, driver: Any, page: str) -> None:
        driver.switch_to.window(driver.window_handles[0])  # the one before may be closed
        driver.switch_to.new_window("window")
        self.handle = driver.current_window_handle
        self.page = f"{page}?tab={self.handle}"
        super().__init__(driver, self.page)

    def tell(self, command: dict[str, Any]) -> None:
        self.driver.switch_to.window(self.handle)
        super().tell(command)

    def read(self, name: str, told: list[dict[str, Any]], limit: float) -> None:
        self.driver.switch_to.window(self.handle)
        super().read(name, told, limit)

    def show(self) -> None:
        self.driver.switch_to.window(self.handle)
        self.driver.execute_cdp_cmd("Page.bringToFront", {})

    def run(self, script: str) -> Any:
        self.driver.switch_to.window(self.handle)
        return self.driver.execute_script(script)

    def shut(self) -> None:
        self.driver.switch_to.window(self.handle)
        self.driver.close()

    def hide(self, hidden: bool = True) -> None:
        """What a tab is told when another is put in front of it."""
        state = "hidden" if hidden else "visible"
        self.run(
            f"Object.defineProperty(document, 'visibilityState', {{value: '{state}', configurable: true}});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium_driver("--host-resolver-rules=MAP plain.test 127.0.0.1") as driver:
        yield driver


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
def url(wire: Wire, topic: Topic, request: pytest.FixtureRequest) -> str:
    return wire.on(f"/{request.node.name}", topic.serve)


@pytest.fixture
def open_tab(driver: Any, wire: Wire) -> Iterator[Callable[[], Tab]]:
    """Opens a tab; those that are still open are closed in the end."""
    first = driver.window_handles[0]

    def new(page: str = wire.url + "/") -> Tab:
        return Tab(driver, page)

    yield new
    for handle in driver.window_handles:
        if handle != first:
            driver.switch_to.window(handle)
            driver.close()
    driver.switch_to.window(first)


def has(number: int, epoch: str = "e") -> Callable[[Watch], bool]:
    return lambda watch: watch.ids[-1:] == [f"{epoch}-{number}"]


def numbers(watch: Watch) -> list[int]:
    return [int(id.rpartition("-")[2]) for id in watch.ids]


def assert_whole(watch: Watch) -> None:
    """No gap and no repeat."""
    got = numbers(watch)
    assert got == list(range(got[0], got[-1] + 1))


@pytest.mark.heavy
def test_eight_tabs_have_one_connection_whichever_of_them_are_closed(
    open_tab: Callable[[], Tab], topic: Topic, url: str
) -> None:
    chance = random.Random(7)
    topic.publish()
    tabs = [open_tab() for _ in range(8)]
    watches = [tab.subscribe(url, acrossTabs="ann") for tab in tabs]
    for watch in watches:
        watch.until(has(1))
    stop = threading.Event()

    def keep_publishing() -> None:
        while not stop.wait(0.01):
            topic.publish()

    publisher = threading.Thread(target=keep_publishing)
    publisher.start()
    try:
        for turn in range(10):
            place = chance.randrange(8) if turn % 2 else 0  # the first is the leader, or the next to be
            tabs.pop(place).shut()
            watches.pop(place)
            tabs.append(open_tab())
            watches.append(tabs[-1].subscribe(url, acrossTabs="ann"))
            watches[-1].until(lambda watch: watch.ids)
    finally:
        stop.set()
        publisher.join()
    for watch in watches:
        watch.until(has(topic.count))
        assert_whole(watch)
    assert topic.streams == 1
    assert topic.most <= 2, "the old leader's and the new one's, for a moment"


def test_a_tab_that_begins_behind_what_the_leader_has_kept_polls_for_it(
    open_tab: Callable[[], Tab], topic: Topic, url: str
) -> None:
    topic.publish()
    open_tab().subscribe(url, acrossTabs="ann").until(has(1))
    topic.publish(150)
    late = open_tab().subscribe(url, acrossTabs="ann", lastEventId="e-1").until(has(151))
    assert numbers(late) == list(range(2, 152))
    assert topic.polls == 5
    topic.publish()
    late.until(has(152))
    assert_whole(late)
    assert topic.most == 1


@pytest.mark.parametrize(("begin", "first"), [("e-9", 10), ("e-10", 11), ("", 10), ("latest", 11)])
def test_a_tab_joins_where_it_wants_without_a_request(
    open_tab: Callable[[], Tab], topic: Topic, wire: Wire, begin: str, first: int
) -> None:
    url = wire.on(f"/joins-{first}-{begin}", topic.serve)
    topic.publish()
    leader = open_tab().subscribe(url, acrossTabs="ann").until(has(1))
    for _ in range(9):
        topic.publish()
    leader.until(has(10))
    late = open_tab().subscribe(url, acrossTabs="ann", lastEventId=begin)
    late.state("live")
    topic.publish()
    late.until(has(11))
    assert numbers(late) == list(range(first, 12))
    assert (topic.most, topic.polls) == (1, 0)


def test_tabs_that_begin_with_a_topic_that_has_nothing_wait_on_one_connection(
    open_tab: Callable[[], Tab], topic: Topic, url: str
) -> None:
    watches = [open_tab().subscribe(url, acrossTabs="ann", lastEventId="earliest") for _ in range(2)]
    for watch in watches:
        watch.state("live")
    topic.publish(2)
    for watch in watches:
        watch.until(has(2))
        assert numbers(watch) == [1, 2]
    assert (topic.streams, topic.polls) == (1, 0)


def test_what_came_between_a_tabs_beginning_and_the_leaders_is_not_missed(
    open_tab: Callable[[], Tab], topic: Topic, wire: Wire, url: str
) -> None:
    """The leader begins with the newest message; a tab that wants all has asked before that came."""
    held, asked = threading.Event(), threading.Event()

    def late(exchange: Exchange) -> None:
        if exchange.headers["Accept"] == FORM.accept and not asked.is_set():
            asked.set()
            assert held.wait(BOUND)
        topic.serve(exchange)

    url = wire.on("/between", late)
    topic.publish(2)
    leader = open_tab().subscribe(url, acrossTabs="ann")
    assert asked.wait(BOUND)
    late_tab = open_tab().subscribe(url, acrossTabs="ann", lastEventId="earliest").until(has(2))
    topic.publish(5)
    held.set()
    leader.until(has(7))
    late_tab.until(has(7))
    assert numbers(late_tab) == list(range(1, 8))
    assert numbers(leader) == [7]


@pytest.mark.heavy
def test_each_tab_is_told_of_a_reset_and_loads_its_own_state(
    open_tab: Callable[[], Tab], topic: Topic, url: str
) -> None:
    topic.publish(3)
    watches = [open_tab().subscribe(url, acrossTabs="ann", load=["e-2", "ex-5"]) for _ in range(3)]
    for watch in watches:
        watch.until(has(3))
    topic.restart(7)
    for watch in watches:
        watch.until(has(7, "ex"))
        assert watch.ids == ["e-3", "ex-6", "ex-7"]
        assert watch.of("load") == ["e-2", "ex-5"]
        assert watch.resets == 1
    topic.wait(lambda: topic.streams == 1)
    late = open_tab().subscribe(url, acrossTabs="ann", lastEventId="ex-6").until(has(7, "ex"))
    assert (late.ids, topic.polls) == (["ex-7"], 0)


@pytest.mark.heavy
def test_another_user_and_another_topic_have_connections_of_their_own(
    open_tab: Callable[[], Tab], topic: Topic, url: str
) -> None:
    topic.publish()
    open_tab().subscribe(url, acrossTabs="ann").until(has(1))
    open_tab().subscribe(url, acrossTabs="ben").until(has(1))
    open_tab().subscribe(url + "?kind=2", acrossTabs="ann").until(has(1))
    open_tab().subscribe(url).until(has(1))
    assert topic.streams == 4


def test_what_the_former_leader_has_sent_comes_late_and_is_passed_over(
    open_tab: Callable[[], Tab], topic: Topic, url: str
) -> None:
    topic.publish()
    tabs = [open_tab() for _ in range(2)]
    watches = [tab.subscribe(url, acrossTabs="ann").until(has(1)) for tab in tabs]
    topic.publish()
    for watch in watches:
        watch.until(has(2))
    late = {"id": "e-1", "content": "<message>1</message>"}
    tabs[0].run(f"new BroadcastChannel({json.dumps(channel(url))}).postMessage({json.dumps({'message': late})})")
    topic.publish()
    for watch in watches:
        watch.until(has(3))
        assert numbers(watch) == [1, 2, 3]


def channel(url: str) -> str:
    """The name of what tabs speak by: user, address, transport and `text`."""
    return "pushdemo " + json.dumps(["ann", url, "multipart", False], separators=(",", ":"))


def test_a_tab_that_stops_does_not_stop_the_others(open_tab: Callable[[], Tab], topic: Topic, url: str) -> None:
    topic.publish()
    leader, other = (open_tab().subscribe(url, acrossTabs="ann").until(has(1)) for _ in range(2))
    leader.close()
    topic.publish()
    other.until(has(2))
    assert_whole(other)
    assert leader.ids == ["e-1"]


def test_the_state_of_the_connection_is_told_to_all(open_tab: Callable[[], Tab], wire: Wire) -> None:
    gone = threading.Event()

    def ends(exchange: Exchange) -> None:
        exchange.stream(FORM.content_type, FORM.opening, FORM.message(Sent("e-1", "<a/>")))
        assert gone.wait(BOUND)
        exchange.write(FORM.end)
        exchange.end()

    url = wire.on("/told", ends)
    watches = [open_tab().subscribe(url, acrossTabs="ann").until(has(1)) for _ in range(2)]
    for watch in watches:
        watch.state("live")
    gone.set()
    for watch in watches:
        assert watch.state("ended")["code"] == "ended"


def test_a_hidden_leader_gives_way_to_a_tab_that_is_seen(open_tab: Callable[[], Tab], topic: Topic, url: str) -> None:
    topic.publish()
    tabs = [open_tab() for _ in range(2)]
    first, second = (tab.subscribe(url, acrossTabs="ann", hiddenAfter=1_000_000).until(has(1)) for tab in tabs)
    tabs[0].hide()
    topic.wait(lambda: (topic.leader, topic.streams) == (tabs[1].page, 1))
    topic.publish()
    for watch in (first, second):
        watch.until(has(2))
        assert_whole(watch)
    tabs[1].shut()
    topic.publish()
    first.until(has(3))
    assert_whole(first)


def test_a_tab_that_comes_to_lead_while_it_is_hidden_gives_way(
    open_tab: Callable[[], Tab], topic: Topic, url: str
) -> None:
    topic.publish()
    tabs = [open_tab() for _ in range(3)]
    watches = [tab.subscribe(url, acrossTabs="ann", hiddenAfter=1_000_000).until(has(1)) for tab in tabs]
    tabs[1].hide()  # next in the queue for the lead
    tabs[0].shut()
    topic.wait(lambda: (topic.leader, topic.streams) == (tabs[2].page, 1))
    topic.publish()
    for watch in watches[1:]:
        watch.until(has(2))
        assert_whole(watch)


def test_when_all_are_hidden_for_long_the_connection_is_given_back(
    open_tab: Callable[[], Tab], topic: Topic, url: str
) -> None:
    topic.publish()
    tabs = [open_tab() for _ in range(2)]
    watches = [tab.subscribe(url, acrossTabs="ann", hiddenAfter=50).until(has(1)) for tab in tabs]
    for tab in tabs:
        tab.hide()
    topic.wait(lambda: topic.streams == 0)
    watches[0].state("paused")
    topic.publish(3)
    tabs[1].hide(hidden=False)
    for watch in watches:
        watch.until(has(4))
        assert_whole(watch)
    assert topic.streams == 1


def test_a_page_that_is_left_may_be_kept_and_comes_back(
    open_tab: Callable[[], Tab], topic: Topic, wire: Wire, url: str
) -> None:
    """A held lock, or an open channel that is spoken to, would keep the page out of the back-forward cache."""
    topic.publish()
    tabs = [open_tab() for _ in range(2)]
    left, other = (tab.subscribe(url, acrossTabs="ann").until(has(1)) for tab in tabs)
    tabs[0].run("addEventListener('pageshow', ({persisted}) => { window.kept = persisted })")
    tabs[0].driver.get(wire.url + "/?away")
    topic.publish(2)
    other.until(has(3))
    tabs[0].driver.switch_to.window(tabs[0].handle)
    tabs[0].driver.back()
    assert tabs[0].run("return window.kept") is True
    left.until(has(3))
    assert_whole(left)
    topic.wait(lambda: topic.streams == 1)


def test_without_https_each_tab_has_its_own_connection(
    open_tab: Callable[..., Tab], topic: Topic, wire: Wire, request: pytest.FixtureRequest
) -> None:
    wire.on("/plain", topic.serve)
    topic.publish()
    page = wire.url.replace("127.0.0.1", "plain.test")
    tabs = [open_tab(page + "/") for _ in range(2)]
    assert [tab.run("return isSecureContext") for tab in tabs] == [False, False]
    watches = [tab.subscribe(page + "/plain", acrossTabs="ann") for tab in tabs]
    for watch in watches:
        watch.until(has(1))
    assert topic.streams == 2


def test_a_frozen_leader_gives_the_connection_to_another(open_tab: Callable[[], Tab], topic: Topic, url: str) -> None:
    topic.publish()
    tabs = [open_tab() for _ in range(2)]
    frozen, other = (tab.subscribe(url, acrossTabs="ann").until(has(1)) for tab in tabs)
    tabs[0].run("document.dispatchEvent(new Event('freeze'))")
    topic.publish()
    other.until(has(2))
    began = time.monotonic()
    tabs[0].run("document.dispatchEvent(new Event('resume'))")
    frozen.until(has(2))
    assert time.monotonic() - began < BOUND
    for watch in (frozen, other):
        assert_whole(watch)
    assert topic.streams == 1


def at(text: str) -> set[str]:
    """The positions of several topics."""
    return set(text.split(","))


@pytest.mark.parametrize("joins", ["before", "after"])
def test_the_next_leader_knows_where_a_topic_without_a_message_began(
    open_tab: Callable[[], Tab], wire: Wire, joins: str
) -> None:
    """It has joined before the stream began, and hears of it, or after that, and is told."""
    joined = threading.Event()

    def begins(exchange: Exchange) -> None:
        exchange.stream(FORM.content_type, FORM.opening)
        if joins == "before":
            assert joined.wait(BOUND)
        exchange.write(FORM.begin("news:e-0,figures:f-7"), FORM.message(Sent("f-8", 8, "figures")))
        exchange.until_gone()

    url = wire.on(f"/began-{joins}", begins, says("multipart", end=False), never)
    leader = open_tab().subscribe(url, acrossTabs="ann")
    if joins == "after":
        leader.until(lambda watch: watch.ids)
    else:
        leader.state("live")
    follower = open_tab().subscribe(url, acrossTabs="ann")
    follower.state("live")
    joined.set()
    follower.until(lambda watch: watch.ids)
    leader.close()
    wire.until_asked(2)
    assert at(wire.requests[1].last_event_id) == {"news:e-0", "figures:f-8"}
    assert (follower.ids, follower.resets, len(wire.requests)) == (["f-8"], 0, 2)
    follower.close()


def test_the_next_leader_of_a_topic_without_a_message_knows_where_it_began(
    open_tab: Callable[[], Tab], wire: Wire
) -> None:
    began = says("multipart", FORM.begin("e-7"), FORM.failing, end=False)
    url = wire.on("/began-latest", began, says("multipart", end=False), never)
    leader = open_tab().subscribe(url, acrossTabs="ann", lastEventId="latest")
    leader.state("failing")
    follower = open_tab().subscribe(url, acrossTabs="ann", lastEventId="latest")
    follower.state("failing")
    leader.close()
    wire.until_asked(2)
    assert [request.last_event_id for request in wire.requests] == ["latest", "e-7"]
    follower.close()


def test_one_who_wants_only_what_comes_does_not_lead_with_all_that_was(open_tab: Callable[[], Tab], wire: Wire) -> None:
    """The leader's own beginning is no position, as long as nothing has come."""
    down = refuses(503, Retry_After="3600")
    url = wire.on("/earliest", down, says("multipart", end=False), never)
    leader = open_tab().subscribe(url, acrossTabs="ann", lastEventId="earliest")
    leader.state("waiting")
    follower = open_tab().subscribe(url, acrossTabs="ann", lastEventId="latest")
    follower.state("waiting")
    leader.close()
    wire.until_asked(2)
    assert [request.last_event_id for request in wire.requests] == ["earliest", "latest"]
    follower.close()
