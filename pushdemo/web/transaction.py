"""What waits for a commit: an order of calls that a transaction makes when it has been committed, or drops.

Knows the protocol of the `transaction` package (data manager, savepoint, after-commit hook), and imports nothing of it.
Any thread may add; the thread that ends the transaction calls the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Waiting(Protocol):
    """What waits."""

    def dropped(self) -> None:
        """The transaction, or the part of it that this belongs to, was rolled back."""


Send = Callable[[Sequence[Any]], None]


class Commit:
    """A data manager of one transaction. `send` is called once, after the commit, with all that was added, in order.

    A rollback to a savepoint that is older than this has `transaction` abort it and forget it: it is over then, and
    whoever adds next joins anew (`waiting_in`).
    """

    def __init__(self, manager: Any, transaction: Any, send: Send) -> None:
        self.transaction_manager = manager
        self.over = False  # under the lock, as is the next
        self._waiting: list[Waiting] = []
        self._lock = threading.Lock()
        self._send = send
        transaction.join(self)
        transaction.addAfterCommitHook(self._committed)

    def add(self, waiting: Waiting) -> None:
        """Have this wait for the commit."""
        with self._lock:
            self._waiting.append(waiting)

    def settle(self, success: bool) -> None:
        """Do at once what the commit would do, or its failure. Whoever adds later waits again."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if success and waiting:
            self._send(waiting)
        for each in () if success else waiting:
            each.dropped()

    def _committed(self, success: bool) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
            self.over = True
        if success and waiting:
            self._send(waiting)

    def _drop(self, first: int = 0) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting[first:], self._waiting[:first]
        for each in waiting:
            each.dropped()

    # -- what a transaction asks of a data manager

    def abort(self, transaction: Any) -> None:
        """The transaction is aborted, or rolled back to before this has joined."""
        self.over = True
        self._drop()

    def tpc_begin(self, transaction: Any) -> None:
        """Nothing can fail here: all that waits is encoded."""

    def commit(self, transaction: Any) -> None:
        """Nothing to do."""

    def tpc_vote(self, transaction: Any) -> None:
        """Nothing to do."""

    def tpc_finish(self, transaction: Any) -> None:
        """What follows is the after-commit hook's, whose errors do no harm."""

    def tpc_abort(self, transaction: Any) -> None:
        """The commit has failed."""
        self.abort(transaction)

    def sortKey(self) -> str:
        """Come last, after the databases."""
        return f"~pushdemo:{id(self)}"

    def savepoint(self) -> Savepoint:
        """Return what rolls back to this moment."""
        with self._lock:
            return Savepoint(self, len(self._waiting))


class Savepoint:
    """A moment of a `Commit`."""

    def __init__(self, commit: Commit, count: int) -> None:
        self._commit = commit
        self._count = count

    def rollback(self) -> None:
        """Drop what was added since."""
        self._commit._drop(self._count)


class _Key:
    """Transactions keep data by the identity of an object."""


_key = _Key()


def commit_of_transaction(manager: Any) -> Commit | None:
    """Return what waits for the commit of the manager's transaction; None where nothing does."""
    try:
        commit: Commit = manager.get().data(_key)
    except KeyError:
        return None
    return None if commit.over else commit


def waiting_in(manager: Any, send: Send) -> Commit:
    """Return what waits for the commit of the manager's transaction, joined if there is none yet."""
    commit = commit_of_transaction(manager)
    if commit is None:
        transaction = manager.get()
        commit = Commit(manager, transaction, send)
        transaction.set_data(_key, commit)
    return commit
