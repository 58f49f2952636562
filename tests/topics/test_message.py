"""A message: event ids as they are written and read, and bytes that are made once."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushdemo.topics.message import Message, event_id, join_event_ids, parse_event_id, split_event_ids
from pushdemo.topics.pattern import topic
from tests.support import PATIENCE

EPOCHS = st.from_regex(r"[0-9a-f]{8}|[a-z-]{1,5}", fullmatch=True)
NUMBERS = st.integers(0, 10**19 - 1)


@given(EPOCHS, NUMBERS)
def test_an_id_is_read_as_it_was_written(epoch: str, number: int) -> None:
    assert parse_event_id(event_id(epoch, number)) == (epoch, number)


@pytest.mark.parametrize(
    "text", ["", "1", "-1", "a", "a-", "a-x", "a-\u00b2", "a-\u0663", "a-1 ", f"a-{10**19}", "a-" + "9" * 5000]
)
def test_a_text_that_is_no_id_is_none(text: str) -> None:
    assert parse_event_id(text) is None


@given(st.dictionaries(st.text(min_size=1, max_size=5).filter(str.isprintable), st.tuples(EPOCHS, NUMBERS), max_size=4))
def test_ids_of_several_topics_are_read_as_they_were_written(found: dict[str, tuple[str, int]]) -> None:
    ids = {topic("room.{id}", id=value).name: event_id(*id) for value, id in found.items()}
    assert split_event_ids(join_event_ids(ids)) == ids


def test_the_id_of_a_message_is_its_topics_epoch_and_its_number_or_its_own() -> None:
    assert Message(9, 7, "", b"a", "text/plain", epoch="abcd").id == "abcd-7"
    assert Message(9, 7, "any", b"a", "text/plain").id == "any"


def test_threads_that_encode_a_message_at_once_share_one_result() -> None:
    message = Message(1, 1, "e-1", b"a", "text/plain")
    together = threading.Barrier(8)
    made: list[int] = []
    got: list[bytes] = []

    def encode(entry: Message) -> bytes:
        made.append(threading.get_ident())
        return entry.body * 2

    def ask() -> None:
        together.wait(PATIENCE)
        got.append(message.encoded("form", encode))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(made) == 1
    assert got == [b"aa"] * 8
    assert len({id(data) for data in got}) == 1


def test_bytes_that_nobody_wants_any_more_are_made_again() -> None:
    message = Message(1, 1, "e-1", b"a", "text/plain")
    first = message.encoded("form", lambda entry: entry.body * 3)
    assert message.encoded("form", lambda entry: b"") is first
    assert message.forms == {"form": b"aaa"}
    message.forget_encoded()
    assert message.forms == {}
    assert message.encoded("form", lambda entry: entry.body) == b"a"
