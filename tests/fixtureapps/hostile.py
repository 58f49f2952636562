"""The demo application with a source whose text a careless page would execute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyramid.config import Configurator
from pyramid.router import Router

TEXTS = [
    "<script>window.executed = 'script'</script>",
    "<img src=x onerror=\"window.executed = 'img'\">",
    "<svg onload=\"window.executed = 'svg'\"></svg>",
    "</li><iframe srcdoc=\"<script>parent.executed = 'iframe'</script>\"></iframe>",
    "&lt;b&gt; ]]> Ὀδυσσεύς 奥德修斯 أوديسيوس",
]


def hostile() -> Iterator[str]:
    while True:
        yield from TEXTS


def main(global_config: dict[str, str] | None = None, **settings: Any) -> Router:
    with Configurator(settings=settings) as config:
        config.include("pushdemo")
        config.include("pyramid_jinja2")
        config.include("pushdemo.demo.routes")
        config.scan("pushdemo.demo")
        config.add_topic("server", hostile)
        return config.make_wsgi_app()
