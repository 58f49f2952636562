"""`pushdemo.access_log`: one line for each stream, on a server that parks and on one that does not."""

from __future__ import annotations

import logging
import re

import pytest

from tests.readers import STREAMS, Reader, pushing
from tests.support import wait_until

LINE = r"127\.0\.0\.1 - GET /push/news {} \d+\.\d s, {} messages, {} bytes, {}"


@pytest.mark.parametrize("transport", STREAMS)
def test_a_stream_has_a_line_with_what_it_was_sent_and_why_it_ended(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pushdemo.access")
    with pushing({"access_log": "true"}, news={}) as site:
        left = site.reader(transport).join()
        wait_until(lambda: site.topics["news"].clients == 1, what="the client")
        for text in ("one", "two", "three"):
            site.topics["news"].publish(text)
            assert left.next().content == text
        size = len(_body(left)) + 3 * len("16\r\n\r\n")  # messages are counted with their chunk's framing
        left.leave()
        wait_until(lambda: caplog.messages, what="the line")
        (line,) = caplog.messages
        assert re.fullmatch(LINE.format(transport, 3, size, "the client left"), line), (line, size)
        ended = site.reader(transport).join()
        assert ended.next().content == "three"
        site.topics["news"].end()
        ended.rest()
        ended.leave()
        wait_until(lambda: len(caplog.messages) == 2, what="the second line")
        assert re.fullmatch(LINE.format(transport, 1, r"\d+", "the topic ended"), caplog.messages[1])


def _body(reader: Reader) -> bytes:
    """What has come of the body, without the chunks' framing."""
    from tests.readers import answer

    found = answer(reader.raw)
    assert found
    return bytes(found.body)


def test_without_the_setting_there_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pushdemo.access")
    with pushing() as site:
        reader = site.reader("sse").join()
        reader.leave()
        wait_until(lambda: site.topics["news"].clients == 0, what="its leaving")
    assert caplog.messages == []


def test_a_stop_is_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pushdemo.access")
    with pushing({"access_log": "true"}) as site:
        reader = site.reader("sse").join()
        wait_until(lambda: site.topics["news"].clients == 1, what="the client")
        site.server.stop()
        assert [event.kind for event in reader.rest()] == ["retry"]
        reader.leave()
        wait_until(lambda: caplog.messages, what="the line")
        assert caplog.messages[0].endswith("the server stops")
