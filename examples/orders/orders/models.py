"""The tables, and the database session of a request, which is part of its transaction."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.request import Request
from sqlalchemy import ForeignKey, engine_from_config
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from sqlalchemy.pool import NullPool


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    name: Mapped[str] = mapped_column(primary_key=True)
    salt: Mapped[bytes]
    password: Mapped[bytes]

    def __init__(self, name: str, password: str) -> None:
        salt = os.urandom(16)
        super().__init__(name=name, salt=salt, password=_hashed(password, salt))

    def has_password(self, password: str) -> bool:
        return _hashed(password, self.salt) == self.password


class Member(Base):
    """A user who may read and write the orders of a room."""

    __tablename__ = "members"
    room: Mapped[str] = mapped_column(primary_key=True)
    user_name: Mapped[str] = mapped_column(ForeignKey("users.name"), primary_key=True)
    user: Mapped[User] = relationship()


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    room: Mapped[str] = mapped_column(index=True)
    item: Mapped[str]
    state: Mapped[str] = mapped_column(default="open")
    version: Mapped[int] = mapped_column(default=1)  # grows with each change: the page draws only what is newer

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012

    def __json__(self, request: Any) -> dict[str, Any]:
        return {"id": self.id, "item": self.item, "state": self.state, "version": self.version}


def _hashed(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)


def includeme(config: Configurator) -> None:
    engine = engine_from_config(config.get_settings(), poolclass=NullPool)
    Base.metadata.create_all(engine)
    factory = config.registry["dbsession_factory"] = sessionmaker(engine)

    def dbsession(request: Request) -> Session:
        session = factory(info={"request": request})
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    config.add_request_method(dbsession, reify=True)
