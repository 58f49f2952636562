"""The connection that hears what is published at Redis. One thread uses it; any may `wake` that thread."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import redis

from pushdemo.redis.connection import Link
from pushdemo.redis.pool import COMMAND_TIMEOUT

SILENCE = 1.0  # seconds without news until Redis is asked whether it is there
_CHANNELS = 1000  # in one command


class ListenerLostError(ConnectionError):
    """The connection that hears what is published has ended. That says nothing of Redis: to open it again tells."""


class Listener:
    """Hears the channels that it is told to, on a connection of its own."""

    def __init__(self, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._clock = clock
        # Whatever the URL says of timeouts: this waits for news as long as it takes.
        self._connection = link.where.connection(socket_timeout=COMMAND_TIMEOUT, client_name="pushdemo-reader")
        self._selector: selectors.BaseSelector | None = None  # for as long as it is open, as are the next three
        self._waking: socket.socket | None = None
        self._woken: socket.socket | None = None
        self._sock: Any = None
        self._first: list[Any] | None = None  # the answer that opening has read already
        self._heard = 0.0  # when Redis has last said anything
        self._asked = False  # since then, whether it is there

    def open(self, channels: Iterable[str]) -> None:
        """Connect, and begin to hear these channels. Raises RedisUnavailableError."""
        self._link.attempt(lambda: self._connect(list(channels)))

    def hear(self, channels: Sequence[str]) -> None:
        """Begin to hear these too; `next` says when each is heard. Raises ListenerLostError."""
        self._send("SUBSCRIBE", channels)

    def unhear(self, channels: Sequence[str]) -> None:
        """Hear these no more. Raises ListenerLostError."""
        self._send("UNSUBSCRIBE", channels)

    def next(self, timeout: float) -> list[Any] | None:
        """What Redis says next, such as ["message", channel, text]; None after `timeout` seconds, or when woken.

        Raises ListenerLostError where the connection ends, or Redis does not answer any more.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            self._check()
            if self._connection.can_read(0):
                return self._read()
            now = self._clock()
            if now - self._heard > SILENCE + COMMAND_TIMEOUT:
                raise ListenerLostError("no answer")
            if now - self._heard >= SILENCE and not self._asked:
                self._asked = True  # that nothing is published is no error; that the connection is dead shows in use
                self._connection.send_command("PING", check_health=False)
            if not timeout:
                return None
            self._wait(min(timeout, SILENCE))
            return self._read() if self._connection.can_read(0) else None
        except (redis.RedisError, OSError) as error:
            raise ListenerLostError from error

    def wake(self) -> None:
        """Have `next` return now."""
        if (waking := self._waking) is not None:
            with suppress(OSError):  # full: it is about to; closed: nobody waits
                waking.send(b"\0")

    def close(self) -> None:
        """Hear no more, until it is opened again."""
        self._connection.disconnect()
        for each in (self._selector, self._waking, self._woken):
            if each is not None:
                each.close()
        self._selector = self._waking = self._woken = self._sock = self._first = None

    def _connect(self, channels: Sequence[str]) -> None:
        self._connection.connect()
        self._sock = self._connection._sock  # the client library has no other way to wait for two things
        self._woken, self._waking = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for sock in (self._sock, self._woken):
            self._selector.register(sock, selectors.EVENT_READ)
        self._waking.setblocking(False)
        self._heard, self._asked = self._clock(), False
        for number in range(0, len(channels), _CHANNELS):
            self._connection.send_command("SUBSCRIBE", *channels[number : number + _CHANNELS], check_health=False)
        if channels:
            self._first = self._connection.read_response(disconnect_on_error=False)

    def _wait(self, timeout: float) -> None:
        """Wait until there is something to read, or somebody wakes this thread."""
        assert self._selector
        assert self._woken
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._woken:
                self._woken.recv(4096)

    def _check(self) -> None:
        """The client library would connect anew, and hear nothing."""
        if not self._connection.is_connected:
            raise ListenerLostError("closed")

    def _send(self, command: str, channels: Sequence[str]) -> None:
        try:
            self._check()
            for number in range(0, len(channels), _CHANNELS):
                self._connection.send_command(command, *channels[number : number + _CHANNELS], check_health=False)
        except (redis.RedisError, OSError) as error:
            raise ListenerLostError from error

    def _read(self) -> list[Any]:
        answer: list[Any] = self._connection.read_response(disconnect_on_error=False)
        self._heard, self._asked = self._clock(), False
        return answer
