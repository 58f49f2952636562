"""A ring: many sends in one system call, by Linux's io_uring (io_uring(7); linux/io_uring.h). Knows sockets only.

The kernel and the process share an array of entries, each an order to send, and an array of what came of them. Here all
entries are ready but for the descriptors, which are written for a whole batch at once: no Python runs for a single
socket. A ring is one thread's at a time.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress

ENTRIES = 512  # a power of two; more gain nothing, and before Linux 5.12 their memory had to be below RLIMIT_MEMLOCK

_SETUP, _ENTER = 425, 426  # the system calls' numbers, the same on every architecture but one (syscalls(2))
_COMPLETIONS_SIZED = 8  # IORING_SETUP_CQSIZE
_ENTRIES_OFFSET = 0x10000000  # IORING_OFF_SQES
_SEND = 26  # IORING_OP_SEND
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_ENTRY = struct.Struct("=BBHiQQIiQ24x")  # io_uring_sqe: opcode, .., descriptor, .., address, length, flags, user_data
_COUNTER = 0xFFFFFFFF  # a mask: the counters are of 32 bits
_RESULT_SIZE = 16  # bytes of an io_uring_cqe: user_data (8), result (4), flags (4)


class Ring:
    """The kernel's entries and results. Close it.

    Raises OSError where the kernel has no io_uring, forbids it, or would wait for a socket that is full.
    """

    def __init__(self) -> None:
        if ctypes.sizeof(ctypes.c_void_p) != 8:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        self._call = _system_call()
        numbers = (ctypes.c_uint32 * 30)()  # io_uring_params
        numbers[1], numbers[2] = ENTRIES, _COMPLETIONS_SIZED
        self._descriptor = self._call(_SETUP, ENTRIES, ctypes.addressof(numbers), 0, 0, 0, 0)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            self._share(numbers)
            self._rehearse()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def send_each(self, descriptors: array[int], data: bytes) -> list[int]:
        """Send `data` to each of these non-blocking sockets: how many bytes each has taken, -1 for none.

        Raises OSError where the kernel does not say what has come of a send: then nobody knows who has what.
        """
        address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        self._addresses[:] = memoryview(array("Q", [address]) * ENTRIES)
        self._lengths[:] = memoryview(array("I", [len(data)]) * ENTRIES)
        left = memoryview(descriptors)
        sent: list[int] = []
        while len(sent) < len(left):
            begin, count = self._room(len(left) - len(sent))
            self._descriptors[begin : begin + count] = left[len(sent) : len(sent) + count]
            sent += self._submit(begin, count, len(data))
        return sent

    def send_all(self, descriptors: array[int], data: Sequence[bytes]) -> list[int]:
        """As `send_each`, but to each socket its own bytes. No socket may be there twice: what it does not take of the
        first might be followed by the second.
        """
        left = memoryview(descriptors)
        # In C: a tenth of what it takes to ask for each address.
        addresses = memoryview(array("Q", bytes((ctypes.c_char_p * len(data))(*data))))
        lengths = memoryview(array("I", map(len, data)))
        sent: list[int] = []
        while len(sent) < len(left):
            at = len(sent)
            begin, count = self._room(len(left) - at)
            self._descriptors[begin : begin + count] = left[at : at + count]
            self._addresses[begin : begin + count] = addresses[at : at + count]
            self._lengths[begin : begin + count] = lengths[at : at + count]
            sent += self._submit(begin, count)
        return sent

    def _share(self, numbers: ctypes.Array[ctypes.c_uint32]) -> None:
        """Map what the kernel shares, and fill in what is the same in each entry."""
        heads, results = numbers[10:18], numbers[20:26]  # io_sqring_offsets, io_cqring_offsets
        size = max(heads[6] + 4 * ENTRIES, results[5] + _RESULT_SIZE * ENTRIES)
        shared = memoryview(mmap.mmap(self._descriptor, size))
        entries = memoryview(mmap.mmap(self._descriptor, _ENTRY.size * ENTRIES, offset=_ENTRIES_OFFSET))
        self._places = shared.cast("I")  # counters, of which the kernel moves `_taken` and `_done`
        self._taken, self._given, self._read, self._done = (
            offset // 4 for offset in (heads[0], heads[1], results[0], results[1])
        )
        for number in range(ENTRIES):
            self._places[heads[6] // 4 + number] = number
            _ENTRY.pack_into(entries, number * _ENTRY.size, _SEND, 0, 0, -1, 0, 0, 0, _FLAGS, number)
        self._descriptors = entries.cast("i")[1::16]
        self._addresses = entries.cast("Q")[2::8]
        self._lengths = entries.cast("I")[6::16]
        came = shared[results[5] : results[5] + _RESULT_SIZE * ENTRIES]
        self._numbers, self._results = came.cast("Q")[0::2], came.cast("i")[2::4]

    def _room(self, most: int) -> tuple[int, int]:
        """Which entries are the next, up to the array's end, and how many."""
        begin = self._places[self._taken] % ENTRIES  # the kernel's word: whatever was left is forgotten
        return begin, min(most, ENTRIES - begin)

    def _submit(self, begin: int, count: int, size: int = -1) -> list[int]:
        """Have the kernel carry out these entries, and read what came of them. `size` is that of all, where it is one.

        Each entry that it takes has its result when the call returns, for none waits for anything: so entries and
        results are at the same place in their arrays at each call.
        """
        places = self._places
        taken, read = places[self._taken], places[self._done]
        places[self._given] = (taken + count) & _COUNTER
        self._call(_ENTER, self._descriptor, count, 0, 0, 0, 0)
        places[self._given] = places[self._taken]  # what it has not taken, short of memory say, is taken back
        places[self._read] = places[self._done]
        done = (places[self._done] - read) & _COUNTER
        if read % ENTRIES != begin or done != (places[self._taken] - taken) & _COUNTER:
            raise OSError(errno.EIO, "io_uring has not answered a send")
        results = self._results[begin : begin + done].tolist()
        if results.count(size) == count:
            return results
        by_number = dict(zip(self._numbers[begin : begin + done].tolist(), results, strict=True))  # some out of turn
        return [max(by_number.get(number, -1), -1) for number in range(begin, begin + count)]

    def _rehearse(self) -> None:
        """See the kernel send, and give up at once where a socket is full."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            full = array("i", [ours.fileno()])
            sent = self.send_each(full, b"x")
            with suppress(BlockingIOError):
                while True:
                    ours.send(bytes(65_536))
            sent += self.send_each(full, b"x")
        if sent != [1, -1]:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _system_call() -> Callable[..., int]:
    """syscall(2), which lets go of the interpreter's lock meanwhile."""
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.argtypes = [ctypes.c_long] * 7
    function.restype = ctypes.c_long
    return function
