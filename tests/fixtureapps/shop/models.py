"""The database, and the session of a request, which takes part in its transaction."""

from __future__ import annotations

from typing import Any

import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.request import Request
from sqlalchemy import Engine, engine_from_config
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool


class Base(DeclarativeBase):
    pass


class Item(Base):
    """What the shop sells."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    price: Mapped[int]
    version: Mapped[int] = mapped_column(default=1)


FIRST = {"bread": 3, "butter": 5, "jam": 4}  # prices by name


def make_tables(engine: Engine) -> None:
    """Make what there is not. Of several processes that begin at once, one is to do it before."""
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        if not session.query(Item).count():
            session.add_all(Item(name=name, price=price) for name, price in FIRST.items())


def includeme(config: Configurator) -> None:
    """Add `request.dbsession` and `request.tm`, and make the tables where there are none."""
    settings = config.get_settings()
    settings["tm.manager_hook"] = "pyramid_tm.explicit_manager"
    config.include("pyramid_tm")
    config.include("pyramid_retry")
    # A connection is closed when the transaction ends, so that no test leaves one to the collector.
    engine = engine_from_config(settings, poolclass=NullPool)
    factory = sessionmaker(bind=engine)
    make_tables(engine)
    config.registry["dbsession_factory"] = factory

    def dbsession(request: Request) -> Session:
        return transactional(factory, request.tm, request)

    config.add_request_method(dbsession, reify=True)


def transactional(factory: sessionmaker[Session], manager: Any, request: Request | None = None) -> Session:
    """A database session that is committed and rolled back with the transactions of `manager`."""
    session = factory(info={"request": request})
    zope.sqlalchemy.register(session, transaction_manager=manager)
    return session
