"""A security policy for the demo, by the ini alone: `pyramid.includes = tests.fixtureapps.guarded`."""

from __future__ import annotations

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.security import Allowed, Denied


class OperatorsOnly:
    """Whoever says the word is the operator, and may `watch`."""

    def identity(self, request: Request) -> str | None:
        return self.authenticated_userid(request)

    def authenticated_userid(self, request: Request) -> str | None:
        return "operator" if request.headers.get("Authorization") == "Bearer sesame" else None

    def permits(self, request: Request, context: object, permission: str) -> Allowed | Denied:
        if permission == "watch" and self.authenticated_userid(request):
            return Allowed("the operator may")
        return Denied("only the operator may")

    def remember(self, request: Request, userid: str, **options: object) -> list[tuple[str, str]]:
        return []

    def forget(self, request: Request, **options: object) -> list[tuple[str, str]]:
        return []


def includeme(config: Configurator) -> None:
    config.set_security_policy(OperatorsOnly())
