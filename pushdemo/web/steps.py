"""The steps of a `json_yield` view's generator, which outlives the request that began it.

The generator's request is the current one (`get_current_request`) in each step, in whatever thread. Its transaction,
its database session and its response are over with the first answer: `step` gives a step its own. One thread at a time
runs the steps of a generator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from pyramid.interfaces import IRequestFactory, ISessionFactory
from pyramid.request import Request, apply_request_extensions
from pyramid.threadlocal import RequestContext, get_current_request, manager

from pushdemo.web.rendering import json_text
from pushdemo.web.session import encode

log = logging.getLogger(__name__)

# What a request knows of the view that it has been sent to.
_FOUND = (
    "context",
    "matchdict",
    "matched_route",
    "request_iface",
    "root",
    "subpath",
    "traversed",
    "view_name",
    "virtual_root",
    "virtual_root_path",
)
_OF_ONE_REQUEST = ("webob.", "tm.", "retry.", "pushdemo.", "wsgi.input", "CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING")


class ViewSteps:
    """See Steps in session.py. `request` is the one that begins the generator of the view `name`."""

    __slots__ = ("_context", "_generator", "_name", "_request")

    def __init__(self, generator: Generator[Any, Any, Any], request: Request, name: str) -> None:
        self._generator = generator
        self._request = request
        self._context = vars(request).get("context")  # the router takes it from the request at the end
        self._name = name

    def __next__(self) -> str:
        request = self._request
        if manager.get()["request"] is request:  # its response is not made yet
            return self._step()
        known = vars(request)
        manager.push({"registry": request.registry, "request": request})
        try:
            known.setdefault("context", self._context)
            response, session = request.response, known.get("session")
            status, headers = response.status, [*response.headerlist]
            contents = None if session is None else _contents(session)
            callbacks = len(known.get("finished_callbacks", ()))
            try:
                return self._step()
            finally:
                if response.headerlist != headers or response.status != status:
                    _warn(request, "changes request.response")
                if "session" in known and _contents(known["session"]) != (contents or _stored(request)):
                    _warn(request, "changes request.session")
                if len(known.get("finished_callbacks", ())) != callbacks:
                    _warn(request, "calls request.add_finished_callback")
        finally:
            manager.pop()

    def __str__(self) -> str:
        return f"{self._name} ({self._request.url})"

    @property
    def is_alone(self) -> bool:
        """See Steps: the transaction of the request that began the generator is committed with its answer, or not."""
        return bool(self._request.environ.get("tm.active")) and get_current_request() is self._request

    def close(self) -> None:
        """See Steps."""
        with RequestContext(self._request):
            self._generator.close()

    def _step(self) -> str:
        try:
            item = next(self._generator)
        except StopIteration as stop:
            if stop.value is None:
                raise
            raise StopIteration(self._text(stop.value)) from None
        if vars(self._request).get("_pushdemo_steps"):
            raise RuntimeError(
                f"{self._name} yields within `with request.step()`, whose transaction would stay open until the next "
                "poll: put the yield behind it"
            )
        return self._text(item)

    def _text(self, value: Any) -> str:
        try:
            return json_text(self._request.registry, value, self._request, encode)
        except Exception as error:
            error.add_note(f"{self._name} yields or returns what JSON cannot carry")
            raise


def _warn(request: Request, what: str) -> None:
    """Say once for each view what it does in vain."""
    owner = vars(request).get("_pushdemo_owner")
    name = str(owner.view) if owner else request.path
    warned: set[str] = request.registry["pushdemo.generators"].warned
    if name not in warned:
        warned.add(name)
        log.warning(
            "json_yield: %s %s in a step after its first answer, which changes nothing any more: docs/databases.md "
            "says what steps may use (logged once for each view)",
            name,
            what,
        )


def _contents(session: Any) -> str:
    return repr(dict(session))


def _stored(request: Request) -> str:
    """The contents of a session as the request has brought it."""
    return _contents(request.registry.queryUtility(ISessionFactory)(request))


@contextmanager
def step(request: Request) -> Iterator[Request]:
    """Request method: a request of its own for a part of the work that outlives this one, such as a generator's step.

        with request.step() as step:
            step.dbsession.add(...)

    It is made like this one (with its address, headers and user), has the application's request methods, and is the
    current request within the block. Under pyramid_tm it has a transaction of its own, which is committed at the
    block's end, or rolled back by what the block raises. Raises RuntimeError where all requests share one transaction
    manager, which is so unless the ini says `tm.manager_hook = pyramid_tm.explicit_manager`.
    """
    made = _remade(request)
    steps = vars(request)
    steps["_pushdemo_steps"] = steps.get("_pushdemo_steps", 0) + 1
    try:
        with RequestContext(made):
            try:
                with _transaction(request, made):
                    yield made
                if "session" in vars(made) and _contents(made.session) != _stored(made):
                    _warn(request, "changes step.session")
                if "response" in vars(made):
                    _warn(request, "uses step.response")
            finally:
                made._process_finished_callbacks()
    finally:
        steps["_pushdemo_steps"] -= 1


def _remade(request: Request) -> Request:
    environ = {name: value for name, value in request.environ.items() if not name.startswith(_OF_ONE_REQUEST)}
    environ |= {"wsgi.input": BytesIO(), "CONTENT_LENGTH": "0"}
    registry = request.registry
    factory: Callable[[dict[str, Any]], Request] = registry.queryUtility(IRequestFactory, default=Request)
    made = factory(environ)
    made.registry = registry
    known = vars(request)
    for name in _FOUND:
        if name in known:
            setattr(made, name, known[name])
    apply_request_extensions(made)
    return made


@contextmanager
def _transaction(request: Request, made: Request) -> Iterator[None]:
    manager = getattr(made, "tm", None)
    if manager is None:
        yield
        return
    if manager is request.tm:
        raise RuntimeError(
            "request.step() needs a transaction manager for each request: "
            "tm.manager_hook = pyramid_tm.explicit_manager in the ini's [app:main]"
        )
    active = {"tm.active": True, "tm.manager": manager}
    around = {name: value for name, value in request.environ.items() if name in active}
    made.environ |= active
    request.environ |= active  # so that what this one publishes within the block waits for the block's commit too
    manager.begin()
    finish = manager.abort
    try:
        yield
        if not manager.isDoomed():
            finish = manager.commit
    finally:
        for name in active:
            del made.environ[name], request.environ[name]
        request.environ |= around
        finish()
