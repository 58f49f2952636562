"""The demo application's addresses and topics."""

from __future__ import annotations

from pyramid.config import Configurator

from pushdemo.sources.clock import data_stream


def includeme(config: Configurator) -> None:
    """Routes, static files and topics of the demo."""
    config.add_static_view("static", "pushdemo:static", cache_max_age=3600)
    config.add_topic("server", data_stream)
    config.add_route("home", "/")
    config.add_route("server", "/server/index")
    config.add_route("primes", "/primes")
    config.add_route("prime", "/prime")
    config.add_route("document", "/document")
    config.add_route("lines", "/document/lines")
    config.add_route("job", "/job")
    config.add_route("run", "/job/run")
