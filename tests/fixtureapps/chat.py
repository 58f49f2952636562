"""A small chat: another application than the demo, which adds push to itself as any would.

Whoever gives a name at `/login` may talk in the lobby; the staff, who know a word, have a room of their own. What is
said is a JSON topic without a source: it is published by POST.
"""

from __future__ import annotations

from typing import Any

from pyramid.authentication import AuthTktCookieHelper
from pyramid.authorization import ACLHelper, Allow, Authenticated
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPBadRequest, HTTPForbidden, HTTPNoContent, HTTPSeeOther
from pyramid.request import Request
from pyramid.response import Response
from pyramid.router import Router

ROOMS = ("lobby", "staff")
WORD = "swordfish"

FORM = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Who are you?</title>
<link rel="icon" href="data:,"></head>
<body><form method="post" action="/login"><label>Name <input name="name" required></label>
<label>Word of the staff <input name="word"></label><button>Enter</button></form></body></html>"""

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{room}</title>
<link rel="icon" href="data:,"><script type="module" src="/chat/page.js"></script></head>
<body><h1>{room}</h1><p id="state" role="status"></p><ul id="said" aria-live="polite"></ul>
<form id="say"><label>Say <input name="text" required autocomplete="off"></label><button>Send</button></form>
</body></html>"""

SCRIPT = """import { subscribe } from "/push/push.js";

const room = location.pathname;
const element = (id) => document.getElementById(id);

subscribe(`${room}/messages`, {
  lastEventId: "earliest",
  onmessage: ({ content }) => {
    const item = document.createElement("li");
    item.textContent = `${content.who}: ${content.text}`;
    element("said").append(item);
  },
  onstate: ({ state }) => (element("state").textContent = state),
});

element("say").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { text } = event.target.elements;
  const body = JSON.stringify({ text: text.value });
  const answer = await fetch(`${room}/messages`, { method: "POST", body });
  if (answer.ok) text.value = "";
});
"""


class Visitors:
    """The security policy: a signed cookie says who it is; the name of the staff begins with their sign."""

    def __init__(self) -> None:
        self.ticket = AuthTktCookieHelper("not a secret in a test", hashalg="sha512")

    def authenticated_userid(self, request: Request) -> str | None:
        identity = self.ticket.identify(request)
        return identity["userid"] if identity else None

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        name = self.authenticated_userid(request)
        principals = [Authenticated, "staff"] if name and name.startswith("@") else [Authenticated] if name else []
        return ACLHelper().permits(context, principals, permission)

    def remember(self, request: Request, userid: str, **options: Any) -> Any:
        return self.ticket.remember(request, userid, **options)

    def forget(self, request: Request, **options: Any) -> Any:
        return self.ticket.forget(request, **options)


class Lobby:
    """Who may be in the lobby."""

    __acl__ = ((Allow, Authenticated, "talk"),)

    def __init__(self, request: Request) -> None:
        self.room = "lobby"


class Staff:
    """Who may be in the staff's room."""

    __acl__ = ((Allow, "staff", "talk"),)

    def __init__(self, request: Request) -> None:
        self.room = "staff"


def login_page(request: Request) -> Response:
    return Response(FORM)


def login(request: Request) -> Response:
    name = request.POST.get("name", "").lstrip("@")
    if not name:
        raise HTTPBadRequest("a name is needed")
    if request.POST.get("word"):
        if request.POST["word"] != WORD:
            raise HTTPForbidden("that is not the word")
        name = f"@{name}"
    headers = request.registry["chat.visitors"].remember(request, name)
    return HTTPSeeOther("/lobby", headers=headers)


def page(context: Any, request: Request) -> Response:
    return Response(PAGE.format(room=context.room))


def messages(context: Any, request: Request) -> Response:
    return request.push(context.room)


def say(context: Any, request: Request) -> Response:
    try:
        text = request.json_body["text"]
    except (ValueError, KeyError, TypeError):
        raise HTTPBadRequest('a message is {"text": "..."}') from None
    request.publish(context.room, {"who": request.authenticated_userid, "text": text})
    return HTTPNoContent()


def script(request: Request) -> Response:
    return Response(SCRIPT, content_type="text/javascript", charset="utf-8")


def main(global_config: dict[str, str] | None = None, **settings: Any) -> Router:
    visitors = Visitors()
    with Configurator(settings=settings) as config:
        config.set_security_policy(visitors)
        config.registry["chat.visitors"] = visitors
        config.include("pushdemo")
        config.add_static_view("push", "pushdemo:static")
        config.add_route("login", "/login")
        config.add_view(login_page, route_name="login", request_method="GET")
        config.add_view(login, route_name="login", request_method="POST")
        config.add_route("script", "/chat/page.js")
        config.add_view(script, route_name="script")
        for room, factory in zip(ROOMS, (Lobby, Staff), strict=True):
            config.add_topic(room, content_type="application/json")
            config.add_route(room, f"/{room}", factory=factory)
            config.add_view(page, route_name=room, permission="talk")
            config.add_route(f"{room}.messages", f"/{room}/messages", factory=factory)
            config.add_view(messages, route_name=f"{room}.messages", permission="talk")
            config.add_view(say, route_name=f"{room}.messages", request_method="POST", permission="talk")
        return config.make_wsgi_app()
