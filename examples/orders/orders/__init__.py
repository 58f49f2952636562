"""A shop's orders, as every page of a room shows them: login, permissions, a database, and pushdemo."""

from __future__ import annotations

import os
from typing import Any

from pyramid.authorization import ACLHelper
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.router import Router
from pyramid.session import SignedCookieSessionFactory


class SecurityPolicy:
    """Who is logged in stands in the session; what one may do stands in the `__acl__` of the context."""

    def identity(self, request: Request) -> str | None:
        user: str | None = request.session.get("user")
        return user

    authenticated_userid = identity

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        user = self.identity(request)
        return ACLHelper().permits(context, ["system.Everyone", *([user] if user else [])], permission)


def main(global_config: dict[str, str], **settings: str) -> Router:
    """Make the application. `session.secret` is in the ini, or the environment has SESSION_SECRET."""
    settings["tm.manager_hook"] = "pyramid_tm.explicit_manager"
    with Configurator(settings=settings) as config:
        secret = settings.get("session.secret") or os.environ["SESSION_SECRET"]
        config.set_session_factory(SignedCookieSessionFactory(secret, httponly=True, samesite="Lax"))
        config.set_security_policy(SecurityPolicy())
        config.set_default_csrf_options(require_csrf=True)
        for name in ("pyramid_jinja2", "pyramid_tm", "pyramid_retry", "pushdemo", "orders.models", "orders.views"):
            config.include(name)
        config.add_topic("orders.{room}", content_type="application/json")
        config.add_static_view("push", "pushdemo:static")
        config.add_static_view("static", "orders:static")
        return config.make_wsgi_app()
