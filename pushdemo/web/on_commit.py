"""Publishing when a SQLAlchemy session commits, for applications without the `transaction` package.

An application with pyramid_tm and zope.sqlalchemy needs nothing of this: `request.publish` waits for its transaction.
Runs in the session's thread.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pyramid.path import caller_package
from pyramid.registry import Registry

from pushdemo.topics.pattern import Reference
from pushdemo.web.publications import Publication, Publications, send_all

_KEY = "pushdemo.waiting"  # of the session's `info`


class _Waiting(NamedTuple):
    publication: Publication
    savepoints: tuple[Any, ...]  # the nested transactions that it was published in; the rollback of one drops it


def publish_on_commit(
    session: Any,
    registry: Registry,
    pattern: str | Reference,
    value: Any,
    /,
    *,
    event: str = "",
    renderer: str = "",
    **values: str | int,
) -> None:
    """Publish a message when the outermost transaction of a SQLAlchemy session has been committed.

    The value is checked and encoded at once. The message is dropped when the transaction, or the savepoint
    (`begin_nested`) within which it was published, is rolled back. Messages are sent in order. What fails after the
    commit is logged and counted.

    Raises what `request.publish` does, but for what only sending can raise; and RuntimeError for a session that has no
    transaction and begins none by itself.
    """
    publications: Publications = registry["pushdemo.publications"]
    reference = publications.catalog.refer(pattern, values)
    package = caller_package() if renderer else None
    publication = publications.make(reference, value, event=event, renderer=renderer, package=package)
    session = session() if callable(session) else session  # a scoped_session is a registry of sessions
    if not session.in_transaction():
        if not getattr(session, "autobegin", True):
            raise RuntimeError("the session has no transaction, whose commit the message could wait for")
        session.begin()
    _waiting_in(session).append(_Waiting(publication, tuple(_savepoints(session))))


def _waiting_in(session: Any) -> list[_Waiting]:
    from sqlalchemy import event

    waiting: list[_Waiting] | None = session.info.get(_KEY)
    if waiting is None:
        waiting = session.info[_KEY] = []
        event.listen(session, "after_commit", _committed)
        event.listen(session, "after_soft_rollback", _rolled_back)
        event.listen(session, "after_transaction_end", _ended)
    return waiting


def _savepoints(session: Any) -> Any:
    transaction = session.get_nested_transaction()
    while transaction is not None and transaction.nested:
        yield transaction
        transaction = transaction.parent


def _committed(session: Any) -> None:
    if session.get_nested_transaction() is not None:  # a savepoint is released
        return
    waiting = session.info[_KEY]
    publications = [each.publication for each in waiting]
    waiting.clear()
    send_all(publications)


def _ended(session: Any, transaction: Any) -> None:
    """Drop what has not been sent: `Session.close` rolls back without a word."""
    if transaction.parent is None:
        _rolled_back(session, transaction)


def _rolled_back(session: Any, transaction: Any) -> None:
    waiting = session.info[_KEY]
    dropped = [each for each in waiting if not transaction.nested or transaction in each.savepoints]
    waiting[:] = [each for each in waiting if each not in dropped]
    for each in dropped:
        each.publication.dropped()
