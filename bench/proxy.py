"""A TCP proxy that makes a round trip longer and counts the commands that go through it.

usage: python bench/proxy.py PORT UPSTREAM_PORT SECONDS

Each piece of data is handed on half of SECONDS after it came, in order. For each line on standard input, the number of
commands so far is written to standard output; at its end the proxy ends.
"""

from __future__ import annotations

import asyncio
import sys


class Commands:
    """Counts commands in what a client sends: RESP arrays of bulk strings."""

    def __init__(self) -> None:
        self.count = 0

    def counter(self) -> Counter:
        return Counter(self)


class Counter:
    """Where one connection is in the protocol."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._buffer = b""
        self._skip = 0  # bytes of a bulk string that are still to come

    def feed(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        while at < len(self._buffer):
            if self._skip:
                step = min(self._skip, len(self._buffer) - at)
                self._skip -= step
                at += step
                continue
            end = self._buffer.find(b"\r\n", at)
            if end < 0:
                break
            line = self._buffer[at:end]
            at = end + 2
            if line[:1] == b"*":
                self._commands.count += 1
            elif line[:1] == b"$":
                self._skip = int(line[1:]) + 2
        self._buffer = self._buffer[at:]


async def hand_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float, counter: Counter | None
) -> None:
    """Hand on what is read, `delay` seconds later."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def write() -> None:
        while True:
            due, data = await queue.get()
            if (pause := due - loop.time()) > 0:
                await asyncio.sleep(pause)
            if not data:
                break
            writer.write(data)
        writer.close()

    task = asyncio.create_task(write())
    try:
        while data := await reader.read(1 << 18):
            if counter:
                counter.feed(data)
            queue.put_nowait((loop.time() + delay, data))
    except OSError:
        pass
    queue.put_nowait((loop.time() + delay, b""))
    await task


async def main() -> None:
    port, upstream, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    commands = Commands()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", upstream)
        await asyncio.gather(
            hand_on(reader, here, seconds / 2, commands.counter()), hand_on(there, writer, seconds / 2, None)
        )

    await asyncio.start_server(accept, "127.0.0.1", port)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(commands.count, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
