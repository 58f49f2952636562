"""waitress's tasks and channels, with responses that wait without a thread.

An application that finds `pushdemo.park` in its environ may return `environ["pushdemo.park"](client)` as its body, as
it may with `wsgi.file_wrapper`: a stream or a long poll of `delivery`. Where nothing has wrapped it on the way out, the
worker thread leaves the request unfinished and the socket goes to the hub; else it is iterated in the thread.

Theory of operation. A connection is a `ParkingChannel`, and in one of these states:

    idle     the loop watches its socket, and reads the next request
    served   a worker runs its request (`requests` is not empty); the loop reads nothing of it, and writes what the
             socket has not taken at once
    parked   the hub has its socket; the channel is in no map and watched by nobody here (`_fileno` is None)
    closed   the same, for good

    idle --a whole request--> served --its end--> idle      (worker)
    served --Parked--> parked                               (worker: `_park`)
    served --Postponed--> served, from the beginning        (worker, when there is a turn for it: workers.py)
    parked --a long poll is answered--> idle, or served     (hub: `ParkingTask.done`)
    idle, served --the client leaves--> closed              (loop)
    served --its last response is written--> closed         (worker, or the loop where some of it waits for the client)
    parked --the client leaves, a stream ends--> closed     (hub)

Each step is made by the thread that has the channel; there is no turn of the loop between worker, hub and loop. So:
only the loop closes or reads a channel that it watches; others add to what it watches (`attend`), and only the loop
takes away, looking again afterwards whether somebody has added meanwhile. A parked channel leaves its socket alone.
"""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.task import WSGITask

from pushdemo.delivery.poller import READ, WRITE
from pushdemo.delivery.subscription import LongPoll, Subscription
from pushdemo.delivery.tcp import never_give_up
from pushdemo.server.loop import ALL
from pushdemo.server.offer import Park, Postponed, Turn
from pushdemo.server.reception import Reception
from pushdemo.server.workers import Work

log = logging.getLogger("pushdemo")

_LENGTH = 10**17 + secrets.randbelow(10**17)  # in the headers of an answer that has no length yet; nobody can guess it
_HEADERS = 1_000  # different headers that are kept in a second
_TOGETHER = 65_536  # bytes of a body that are copied behind the headers, so that both are one `send`


class Parked(BaseException):
    """Leaves `HTTPChannel.service` with the task, without ending the request: no handler of Exception stops it."""


class ParkingRequest(HTTPRequestParser):
    """A request."""

    turn: bool | None = None  # one that has waited for a turn: whether it has one, or none came in time


class ParkingTask(WSGITask):
    """A request whose response may outlive its thread; and what the hub knows of a long poll's connection."""

    park: Park  # what it offers to the application
    answered = False  # a long poll, by the hub
    around_length = b"", b""  # of a long poll: the response's headers before and after the number of its bytes
    first = b""  # of a stream's response: what the hub sends first
    fd = -1  # of a parked long poll: its socket's number
    close_on_finish: bool = False  # as in waitress, as the next
    chunked_response: bool = False

    def __init__(self, channel: ParkingChannel, request: HTTPRequestParser) -> None:
        super().__init__(channel, request)
        self.park = Park(channel.server, channel.has_left)

    def service(self) -> None:
        """As in waitress, but nothing is left to do for a long poll that the hub has answered."""
        if self.answered:
            return
        handed_over = False
        try:
            super().service()
        except Parked:
            handed_over = True
            raise
        finally:
            if not handed_over:  # its headers cannot be sent, or its client has left
                self.park.parked = None
            self.park.close(self.response_headers)

    def execute(self) -> None:
        """Have the application make the response. One that would exit the process has failed."""
        try:
            super().execute()
        except (Exception, Postponed):
            raise
        except BaseException as error:
            raise RuntimeError(f"the application has raised {type(error).__name__}") from error

    def get_environment(self) -> dict[str, Any]:
        """waitress's environ, with the offers to park and to run the request later."""
        environ: dict[str, Any] = super().get_environment()
        self.environ = None  # nobody needs it any more, and it is large
        environ["pushdemo.park"] = self.park
        environ["pushdemo.turn"] = Turn(self.request.turn, self.channel.server.workers)
        environ["pushdemo.end"] = self.channel.server.end
        environ["pushdemo.trouble"] = self.channel.server.trouble
        return environ

    @property
    def gives_up(self) -> bool:
        """See Reply: a connection that has been a long poll's."""
        return bool(self.channel.gives_up)

    @gives_up.setter
    def gives_up(self, value: bool) -> None:
        self.channel.gives_up = value

    def write(self, data: bytes) -> None:
        """Write the headers and the first bytes of the body with one `send`, or leave them to the hub."""
        if self.channel.gives_up and self.park.parked is None:
            self.channel.gives_up = False
            if (sock := self.channel.socket) is not None:  # the client may have left
                never_give_up(sock)  # this may be a download that its reader pauses
        if self.wrote_header or len(data) > _TOGETHER:
            super().write(data)
            return
        channel = self.channel
        held: list[bytes] = []
        channel.held = held
        try:
            super().write(data)
        finally:
            channel.held = None
        if self.park.parked is None:
            channel.write_soon(b"".join(held))
        else:
            self.first = b"".join(held)

    def finish(self) -> None:
        """The application has had its say: leave, if its response waits."""
        if self.park.parked is not None:
            if isinstance(self.park.parked, LongPoll):
                self._make_headers()
            raise Parked(self)
        if self.request.command == "HEAD":
            self.write(b"")  # the headers
            self.chunked_response = False  # waitress would send the last chunk of a body that must not be there
        super().finish()

    def build_response_header(self) -> bytes:
        """The status and headers as bytes. Equal ones are made once a second, when their Date changes.

        waitress takes a tenth of a small page's time for them. All that they are made from is in the key.
        """
        connection = self.request.headers.get("CONNECTION", "")
        key = (self.version, self.status, connection, self.content_length, self.close_on_finish, *self.response_headers)
        made = self.channel.server.headers(int(self.start_time))
        try:
            found = made.get(key)
        except TypeError:  # a header that is a list, which waitress takes too
            return bytes(super().build_response_header())
        if found is None:
            header: bytes = super().build_response_header()
            if len(made) < _HEADERS:
                made[key] = header, self.chunked_response, self.close_on_finish
            return header
        header, self.chunked_response, self.close_on_finish = found
        return header

    def _make_headers(self) -> None:
        """Make the headers of a long poll's answer, whatever its length: here an error in them is still a 500."""
        self.content_length = _LENGTH
        before, mark, after = self.build_response_header().partition(b"Content-Length: %d" % _LENGTH)
        self.around_length = before + mark.partition(b" ")[0] + b" ", after

    # -- the hub, for a long poll

    def head(self, size: int) -> bytes:
        """Return the head of a response with a body of this size, as waitress writes it."""
        before, after = self.around_length
        return b"%s%d%s" % (before, size, after)

    def done(self, rest: bytes) -> None:
        """Take the connection back; the request ends as any other."""
        channel = self.channel
        channel.set_socket(channel.socket)
        if rest:
            channel.outbufs[-1].append(rest)
            channel.total_outbufs_len += len(rest)
        self.answered = True
        if len(rest) > channel.adj.outbuf_high_watermark:  # it waits for the client to read, which the hub cannot do
            channel.server.add_task(Work(partial(channel.finish, self)))
        else:
            channel.finish(self)

    def gone(self) -> None:
        """The socket is closed: nobody is left to serve."""
        channel = self.channel
        channel.del_channel()  # an error may have come when it was on its way back
        channel.server.loop.unwatch(self.fd, ALL, channel)
        channel.connected = False
        channel.socket = None
        channel.forget()


class ParkingChannel(HTTPChannel):
    """A connection that can leave the server, for good (a stream) or until it is answered (a long poll)."""

    server: Reception
    socket: Any  # a socket; None once it is another's
    held: list[bytes] | None = None  # what a task writes together; the worker's
    gives_up = False  # the kernel ends it where its client takes nothing for a while: see Reply; of who has the channel
    continues = False  # a `100 Continue` is being sent; under `outbuf_lock`
    new = True  # nothing has been read from it; the loop's, as is the next
    queued = False  # it waits for its turn to be read from
    task_class: Callable[[HTTPChannel, HTTPRequestParser], ParkingTask] = ParkingTask
    parser_class = ParkingRequest

    def __init__(self, server: Reception, sock: Any, addr: Any) -> None:
        super().__init__(server, sock, addr, server.adj, map=server.map)

    # -- any thread

    def attend(self) -> None:
        """Have the loop watch for what there is to read or to write."""
        fd = self._fileno
        if fd is not None:
            self.server.loop.watch(fd, (READ if self.readable() else 0) | (WRITE if self.writable() else 0), self)

    def owns(self, fd: int) -> bool:
        """Whether this is its socket's number. It has none any more before the socket is closed."""
        return bool(self._fileno == fd)

    def del_channel(self, map: dict[int, Any] | None = None) -> None:
        """Leave waitress's maps, and the loop."""
        fd = self._fileno
        super().del_channel(map)
        if fd is not None:
            self.server.loop.unwatch(fd, ALL, self)

    # -- the loop

    def begin(self) -> None:
        """It is the turn of this connection, which is new, and whose client has mostly sent its request already."""
        self.queued = False
        self.ready(self._fileno, READ, waited=True)
        self.attend()

    def ready(self, fd: int | None, events: int, *, waited: bool = False) -> None:
        """Read or write what the events allow, and watch no more for what is not wanted.

        A new connection waits for its turn among those that have arrived, unless it has `waited`.
        """
        if fd is None:
            return
        if fd != self._fileno:  # the report is a late one, or it is parked: the hub has an eye on it
            self.server.loop.unwatch(fd, ALL, self)
            self.attend()  # it may be back already
            return
        try:
            if self.new and not waited and (self.server.arrived or self.server.crowded):
                self.queued = True
                self.server.arrived.append(self)
                self.server.loop.unwatch(fd, ALL, self)
                return
            if events & READ and self.readable():
                self.handle_read()
                events &= ~READ
            if events & WRITE and self.writable() and self._fileno is not None:
                self.handle_write()
                if self.writable():
                    events &= ~WRITE
            if events and self._fileno is not None:
                self.server.loop.unwatch(fd, events, self)
                self.attend()  # a worker may have ended the request in between, and found it watched
        except Exception:
            self.handle_error()

    def handle_read(self) -> None:
        """As in waitress; but a report may be late, and nothing to read is then no error."""
        try:
            data = self.server.receive(self.socket)
        except BlockingIOError:
            return
        except OSError as error:
            if self.adj.log_socket_errors and not isinstance(error, ConnectionError):
                self.logger.exception("Socket error")
            data = b""
        if data:
            self.new = False
            self.last_activity = time.time()
            self.received(data)
        else:
            self.handle_close()

    def handle_write(self) -> None:
        """As in waitress, which takes no lock where no request is under way: whoever ends one may be writing too."""
        with self.outbuf_lock:
            super().handle_write()

    # -- a worker

    def service(self) -> None:
        """Serve one request; park what waits."""
        try:
            super().service()
        except Parked as parked:
            self._park(*parked.args)
            self.server.let_in()
        except Postponed as postponed:
            self.server.workers.run_later(self, postponed.timeout)
        else:
            self._settle()
            self.server.let_in()

    def run(self, *, turn: bool) -> None:
        """Serve the request that has waited: with a turn, or to tell its client that none came."""
        if self.has_left():
            self.cancel()
            self.handle_close()
        else:
            self.requests[0].turn = turn
            self.service()

    def write_soon(self, data: Any) -> int:
        """Send what the socket takes; the loop sends the rest."""
        if self.held is not None:
            self.held.append(data)
            return len(data)
        size: int = super().write_soon(data)
        if self.total_outbufs_len >= self.adj.send_bytes or self.will_close:
            self.attend()
        return size

    def send_continue(self) -> None:
        """As in waitress. A client that has left is left to the loop, which may be reading while a worker is here."""
        with self.outbuf_lock:
            if not self.connected:  # the loop has closed it meanwhile
                return
            self.continues = True
            try:
                super().send_continue()
            finally:
                self.continues = False

    def _flush_some(self, do_close: bool = True) -> bool:
        return bool(super()._flush_some(do_close=do_close and not self.continues))

    def _flush_outbufs_below_high_watermark(self) -> None:
        if self.total_outbufs_len > self.adj.outbuf_high_watermark:
            self.attend()  # waitress waits in here until the loop has written
        super()._flush_outbufs_below_high_watermark()

    def _settle(self) -> None:
        """A request is over: close the connection if that was the last one, or have the loop see to what is next."""
        if self.close_when_flushed and not self.total_outbufs_len and not self._writes():
            self.handle_close()
        else:
            self.attend()

    def _writes(self) -> bool:
        """Whether the loop may be writing."""
        return bool(self.server.loop.watched(self._fileno, self) & WRITE)

    def _park(self, task: ParkingTask) -> None:
        """Give the socket to the hub."""
        if self.adj.channel_request_lookahead or self.total_outbufs_len or self._writes():
            self.server.loop.call_soon(partial(self._hand_over, task))  # the loop may be reading or writing
        else:
            self._hand_over(task)

    def _hand_over(self, task: ParkingTask) -> None:
        client, sock, hub = task.park.parked, self.socket, self.server.hub
        assert client is not None
        if sock is None or not self.connected or self.will_close:
            client.close()
            self.forget()
            return
        if isinstance(client, LongPoll):
            task.fd = self._fileno
            # Thousands may wait, and the garbage collector looks at all that each of them has.
            del task.park, task.response_headers
            super().del_channel()  # the loop still watches it, which is soon needed again and costs nothing
        else:
            self.del_channel()
        unsent = b"".join(outbuf.get(len(outbuf), skip=True) for outbuf in self.outbufs) + task.first
        self.total_outbufs_len = 0
        if isinstance(client, LongPoll):
            hub.poll(sock, client, task, unsent=unsent)
            return
        self.socket = None
        self.forget()
        chunked = task.chunked_response
        if isinstance(client, Subscription):
            hub.stream(sock, client, chunked=chunked, unsent=unsent)
        else:
            hub.pull(sock, client, chunked=chunked, unsent=unsent, run=self.server.workers.run)

    def idle(self, now: float, seconds: float) -> bool:
        """Whether it has waited for its next request for so long."""
        waits = not (self.requests or self.request or self.total_outbufs_len or self.queued)
        return waits and self.last_activity <= now - seconds

    def handle_close(self) -> None:
        """As in waitress; but a forked child of this process may keep the socket open."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
        super().handle_close()

    def has_left(self) -> bool:
        """Whether the client has closed its side, as far as that can be told without reading what it has sent."""
        try:
            return self.socket is None or not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    # -- whoever has it

    def forget(self) -> None:
        """Serve nothing more, nor what the loop is adding: it came in one packet. Close waitress's files."""
        with self.requests_lock:
            while self.requests:
                self.requests.pop().close()
        for outbuf in self.outbufs:
            outbuf.close()

    def finish(self, task: ParkingTask) -> None:
        """End the request of a task that has been answered, as waitress ends any: by its own `service`."""
        self.task_class = partial(_known, task)
        try:
            super().service()
        finally:
            del self.task_class
        self._settle()


def _known(task: ParkingTask, channel: HTTPChannel, request: HTTPRequestParser) -> ParkingTask:
    # Before `finish` is over, a worker may have begun with the request behind this one.
    return task if request is task.request else ParkingTask(channel, request)
