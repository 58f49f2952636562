"""A topic: numbers, history, cursors. What its source does is test_producers.py's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from pushdemo import transports
from pushdemo.topics.catalog import Catalog
from pushdemo.topics.message import Message
from pushdemo.topics.topic import Topic
from pushdemo.transports import multipart
from tests.support import PATIENCE, in_child


def topic(**options: Any) -> Topic:
    return Topic("news", content_type="text/plain", **options)


def after(topic: Topic, position: int) -> list[Message]:
    """What a cursor at `position` is given, in order."""
    found = []
    while (message := topic.following(position)[0]) is not None:
        found.append(message)
        position = message.position
    return found


def bodies(messages: list[Message]) -> list[bytes]:
    return [message.body for message in messages]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a\r\nX-Forged: 1", "x" * 101, "é", "a\n"])
def test_a_name_that_no_header_could_carry_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a topic's name is"):
        Topic(name)


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain;charset=latin-1",
        'text/plain; charset="ISO-8859-1"',
        "application/xml; version=1; CHARSET=utf-16",
        "image/png;charset=x",
        "text/plain\r\nX-Forged: 1",
        "text/plain\n",
        "text/plain;a=\r\n b",
        "text",
        "text/",
        "text/plain; charset",
        "téxt/plain",
        "",
    ],
)
def test_a_content_type_that_bodies_cannot_have_is_refused(content_type: str) -> None:
    with pytest.raises(ValueError, match=r"^content_type=.*must be"):
        Topic("news", content_type=content_type)


@pytest.mark.parametrize(
    "content_type", ["text/plain;charset=utf-8", 'text/html; charset="UTF-8"', "text/plain;charset=utf8", "a/b+c;d=e"]
)
def test_a_content_type_may_say_that_it_is_utf_8(content_type: str) -> None:
    assert Topic("news", content_type=content_type).content_type == content_type


def test_messages_are_numbered_from_1_in_the_topics_epoch() -> None:
    news = topic()
    ids = [news.publish(text).id for text in "abc"]
    assert ids == [f"{news.epoch}-1", f"{news.epoch}-2", f"{news.epoch}-3"]


def test_two_lives_of_a_topic_have_two_epochs() -> None:
    assert topic().epoch != topic().epoch


def test_a_message_knows_when_it_came() -> None:
    assert topic(clock=lambda: 41.5).publish("a").time == 41.5


def test_what_is_no_body_of_the_topics_type_is_refused_and_takes_no_number() -> None:
    news = topic()
    with pytest.raises(TypeError, match="text or bytes, not int"):
        news.publish(7)
    assert news.publish("a").number == 1


def test_a_cursor_gets_what_follows_in_order_and_once() -> None:
    news = topic()
    for text in "abcd":
        news.publish(text)
    assert bodies(after(news, 1)) == [b"b", b"c", b"d"]
    assert after(news, news.head) == []


def test_two_clients_are_given_the_same_message_and_the_same_bytes() -> None:
    news = topic()
    news.publish("a")
    one, other = news.following(0)[0], news.following(0)[0]
    assert one is not None
    assert one is other
    assert transports.format_of(multipart).encode(one) is transports.format_of(multipart).encode(one)


def test_the_history_is_bounded_and_a_cursor_behind_it_skips_to_the_newest() -> None:
    news = topic(history=3)
    for text in "abcdef":
        news.publish(text)
    message, gap = news.following(2)
    assert message is not None
    assert (message.body, gap) == (b"f", True)
    assert bodies(after(news, 3)) == [b"d", b"e", b"f"]


def test_an_entry_that_moves_while_it_is_looked_for_is_found_and_is_no_gap() -> None:
    class Moved(Topic):
        """A topic in which the first look comes between two changes of the history."""

        looks = 0

        def _entry(self, position: int) -> Message | None:
            self.looks += 1
            return None if self.looks == 1 else super()._entry(position)

    news = Moved("news", content_type="text/plain")
    news.publish("a")
    message, gap = news.following(0)
    assert message is not None
    assert (message.body, gap) == (b"a", False)


def test_a_new_client_starts_with_the_newest_message() -> None:
    news = topic()
    assert news.newest() == 0
    for text in "abc":
        news.publish(text)
    assert bodies(after(news, news.newest())) == [b"c"]


def test_a_new_client_gets_the_newest_message_and_the_notice_behind_it() -> None:
    news = topic()
    news.publish("a")
    news.notify("failing")
    assert [entry.kind for entry in after(news, news.newest())] == ["message", "failing"]


def test_earliest_is_in_front_of_all_that_the_history_holds() -> None:
    news = topic(history=2)
    assert after(news, news.oldest()) == []
    for text in "abc":
        news.publish(text)
    assert bodies(after(news, news.oldest())) == [b"b", b"c"]


def test_an_id_is_resumed_behind() -> None:
    news = topic()
    first, _, _ = (news.publish(text) for text in "abc")
    news.notify("failing")
    position = news.locate(first.id)
    assert position is not None
    assert bodies(after(news, position)) == [b"b", b"c", b""]


def test_a_client_that_has_it_all_is_not_told_again_of_the_notice_behind_it() -> None:
    news = topic()
    last = news.publish("a")
    news.notify("failing")
    assert news.locate(last.id) == news.head


def test_the_id_right_before_the_history_is_no_gap_and_the_one_before_that_is() -> None:
    news = topic(history=2)
    ids = [news.publish(text).id for text in "abcd"]
    position = news.locate(ids[1])
    assert position is not None
    assert bodies(after(news, position)) == [b"c", b"d"]
    assert news.locate(ids[0]) is None


@pytest.mark.parametrize(
    "id_of",
    [
        lambda news: "",
        lambda news: "1",
        lambda news: f"{news.epoch}-",
        lambda news: f"{news.epoch}-x",
        lambda news: f"{news.epoch}--1",
        lambda news: f"{news.epoch}-²",
        lambda news: f"{news.epoch}-2",
        lambda news: f"{topic().epoch}-1",
        lambda news: f"{news.epoch}-{'9' * 400}",
    ],
)
def test_an_id_that_this_topic_never_gave_is_not_found(id_of: Callable[[Topic], str]) -> None:
    news = topic()
    news.publish("a")
    assert news.locate(id_of(news)) is None


def test_an_id_of_thousands_of_digits_is_no_error() -> None:
    news = topic()
    news.publish("a")
    assert news.locate(f"{news.epoch}-{'9' * 5000}") is None


def test_the_id_at_a_notice_is_that_of_the_message_before_it() -> None:
    news = topic()
    message = news.publish("a")
    news.notify("failing")
    assert news.id_at(news.head) == message.id


def test_nothing_is_published_to_a_topic_that_has_ended() -> None:
    news = topic()
    news.publish("a")
    news.end()
    with pytest.raises(RuntimeError, match="topic news has ended"):
        news.publish("b")
    assert bodies(after(news, 0)) == [b"a"]


def test_nothing_is_published_once_the_application_stops() -> None:
    news = topic()
    news.close()
    with pytest.raises(RuntimeError, match="topic news has ended"):
        news.publish("a")


@pytest.mark.parametrize("change", [lambda news: news.publish("a"), Topic.end, Topic.close])
def test_a_thread_that_waits_goes_on_when_something_changes(change: Callable[[Topic], Any]) -> None:
    news = topic()
    waiting = threading.Thread(target=news.wait, args=(0, 10 * PATIENCE))
    waiting.start()
    change(news)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_waiting_ends_when_the_time_is_over() -> None:
    assert topic().wait(0, timeout=0.01) is False


def test_listeners_are_told_of_every_change_until_they_leave() -> None:
    news = topic()
    told: list[int] = []

    def listener(changed: Topic) -> None:
        told.append(changed.head)

    news.listen(listener)
    news.publish("a")
    news.notify("reset")
    news.end()
    news.unlisten(listener)
    news.close()
    assert told == [1, 2, 2]


def test_publishers_at_once_lose_nothing_and_readers_without_the_lock_miss_nothing() -> None:
    news = topic(history=4000)
    read: list[Message] = []

    def publish(name: str) -> None:
        for number in range(500):
            news.publish(f"{name}{number}")

    def follow() -> None:
        while len(read) < 2000 and news.wait(len(read), PATIENCE):
            read.extend(after(news, len(read)))

    threads = [threading.Thread(target=follow), *(threading.Thread(target=publish, args=(name,)) for name in "abcd")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [message.position for message in read] == list(range(1, 2001))
    assert [message.number for message in read] == list(range(1, 2001))
    for name in "abcd":
        texts = [message.body.decode() for message in read if message.body.decode()[0] == name]
        assert texts == [f"{name}{number}" for number in range(500)]


def test_a_forked_process_begins_another_life_with_the_same_messages() -> None:
    news = topic()
    ids = [news.publish(text).id for text in "ab"]

    def numbered_on() -> tuple[str, list[bytes], list[str], bool]:
        last = news.publish("child").id
        found = after(news, 0)
        return last, bodies(found), [entry.id for entry in found], news.begin(ids[0]).reset

    last, found, child_ids, reset = in_child(numbered_on)
    assert news.publish("parent").id == f"{news.epoch}-3"
    assert not last.startswith(news.epoch)
    assert found == [b"a", b"b", b"child"]
    assert {id.partition("-")[0] for id in child_ids} == {last.partition("-")[0]}
    assert reset, "an id of the parent means nothing there"
    assert not news.begin(ids[0]).reset


def test_two_forked_processes_have_two_epochs() -> None:
    news = topic()
    assert len({in_child(lambda: news.epoch), in_child(lambda: news.epoch), news.epoch}) == 3


def test_a_forked_process_has_neither_the_parents_clients_nor_its_locks() -> None:
    news = topic()
    told: list[str] = []
    news.listen(lambda topic: told.append(topic.name))
    news.join()
    with news.changed:
        assert in_child(lambda: (news.publish("a").number, news.clients, told)) == (1, 0, [])
    news.leave()


def test_topics_on_one_connection_begin_anew_in_a_forked_process() -> None:
    topics = Catalog()
    for name in "ab":
        topics.add(Topic(name)).publish("x")
    merged = topics.merged([topics["a"], topics["b"]])
    merged.join()
    id = merged.begin().backlog[-1].id

    def resumed_in_child() -> tuple[bool, bool]:
        return topics.merged([topics["a"], topics["b"]]) is merged, topics.merged([topics["a"], topics["b"]]).begin(
            id
        ).reset

    assert in_child(resumed_in_child) == (False, True)
    merged.leave()
