"""The newsroom as sites run it: with what watches their requests. For the tests of bodies that others wrap."""

from __future__ import annotations

from typing import Any

from tests.fixtureapps import newsroom


def sentry(global_config: dict[str, str] | None = None, **settings: Any) -> Any:
    """With Sentry's integration for Pyramid, which wraps each body; without a DSN nothing is sent."""
    import sentry_sdk
    from sentry_sdk.integrations.pyramid import PyramidIntegration

    sentry_sdk.init(integrations=[PyramidIntegration()], traces_sample_rate=1.0)
    return newsroom.main(**settings)


def sentry_wsgi(global_config: dict[str, str] | None = None, **settings: Any) -> Any:
    """With Sentry's WSGI middleware, twice: as where an application and its ini both have it."""
    from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware

    return SentryWsgiMiddleware(SentryWsgiMiddleware(newsroom.main(**settings)))


def telemetry(global_config: dict[str, str] | None = None, **settings: Any) -> Any:
    """With OpenTelemetry's instrumentation of Pyramid, a tween."""
    from opentelemetry.instrumentation.pyramid import PyramidInstrumentor

    PyramidInstrumentor().instrument()
    return newsroom.main(**settings)


def telemetry_wsgi(global_config: dict[str, str] | None = None, **settings: Any) -> Any:
    """With OpenTelemetry's WSGI middleware, which is a generator around each body."""
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(newsroom.main(**settings))


def proxy_fix(global_config: dict[str, str] | None = None, **settings: Any) -> Any:
    """With werkzeug's ProxyFix."""
    from werkzeug.middleware.proxy_fix import ProxyFix

    return ProxyFix(newsroom.main(**settings))


def toolbar(global_config: dict[str, str] | None = None, **settings: Any) -> Any:
    """With pyramid_debugtoolbar."""
    return newsroom.main(**{"pyramid.includes": "pyramid_debugtoolbar", **settings})
