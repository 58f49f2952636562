"""An application's figures for Prometheus, read from the plain counters when it scrapes them. Any thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from pyramid.request import Request
from pyramid.response import Response

from pushdemo.web.status import Status

_STREAMS = (
    ("clients", GaugeMetricFamily, "Clients connected."),
    ("behind", GaugeMetricFamily, "Clients that lack messages."),
    ("lag", GaugeMetricFamily, "Messages that the slowest client lacks."),
    ("messages", CounterMetricFamily, "Messages given to clients."),
    ("bytes", CounterMetricFamily, "Bytes given to clients, without HTTP headers."),
    ("resets", CounterMetricFamily, "Clients told that they have missed messages."),
    ("stalled", CounterMetricFamily, "Clients closed because they did not read."),
    ("failed", CounterMetricFamily, "Clients dropped for an error of the server's own."),
)
_TOPICS = (  # by declared name or pattern, never by a value
    ("topics", GaugeMetricFamily, "Topics that live."),
    ("idle", GaugeMetricFamily, "Topics that live without a client."),
    ("forgotten", CounterMetricFamily, "Topics forgotten."),
    ("published", CounterMetricFamily, "Messages published."),
    ("dropped", CounterMetricFamily, "Messages dropped, as there was no room for a topic."),
)
_MEMORIZE = (
    ("hits", CounterMetricFamily, "Calls that found a fresh value."),
    ("misses", CounterMetricFamily, "Calls that computed one."),
    ("waits", CounterMetricFamily, "Calls that waited for another's."),
    ("stale", CounterMetricFamily, "Calls that got an old value."),
    ("errors", CounterMetricFamily, "Computations that raised."),
    ("size", GaugeMetricFamily, "Values kept."),
    ("age", GaugeMetricFamily, "Age of the newest value, in seconds."),
)

_REDIS = (
    ("leases_held", GaugeMetricFamily, "Leases of sources that this node has."),
    ("leases_lost", CounterMetricFamily, "Leases that another node has taken from a source that ran here."),
    ("topics_followed", GaugeMetricFamily, "Topics, and what else is shared, whose news this node hears."),
    ("reader_lag_seconds", GaugeMetricFamily, "Seconds that the newest news took to come here."),
    ("connections_in_use", GaugeMetricFamily, "Connections in use."),
    ("connections_idle", GaugeMetricFamily, "Connections that are open and not in use."),
    ("connections_limit", GaugeMetricFamily, "Connections that there may be for commands."),
)


class StatusCollector(Collector):
    """An application's figures as metrics, whose names begin with `pushdemo_`."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield all figures as they are now."""
        counters = self._status.clients.counters
        streams = counters.figures().items()
        for field, family, meaning in _STREAMS:
            metric = family(f"pushdemo_{field}", meaning, labels=("topic", "transport"))
            for labels, figures in streams:
                metric.add_metric(labels, getattr(figures, field))
            yield metric
        topics = self._status.topics.figures()
        for field, family, meaning in _TOPICS:
            metric = family(f"pushdemo_{field}", meaning, labels=("topic",))
            for figures_of_topic in topics:
                metric.add_metric((figures_of_topic.topic,), getattr(figures_of_topic, field))
            yield metric
        refusals = CounterMetricFamily("pushdemo_refusals", "Requests refused.", labels=("kind", "status"))
        for (kind, status), count in counters.refusals().items():
            refusals.add_metric((kind, str(status)), count)
        yield refusals
        unsent = CounterMetricFamily(
            "pushdemo_unsent", "Messages dropped with a transaction, or lost after its commit.", labels=("topic", "why")
        )
        for (pattern, why), count in counters.unsent_messages().items():
            unsent.add_metric((pattern, why), count)
        yield unsent
        ready = float(not self._status.backend.trouble)
        yield GaugeMetricFamily("pushdemo_ready", "0 while nothing can be published.", value=ready)
        yield from self._redis()
        yield from self._places()
        yield from self._generators()
        yield from self._memorize()

    def _redis(self) -> Iterator[Metric]:
        backend = self._status.backend
        figures = backend.figures
        for name, family, meaning in _REDIS:
            if name in figures:
                yield family(f"pushdemo_redis_{name}", meaning, value=figures[name])
        errors = CounterMetricFamily("pushdemo_redis_errors", "Failures of the shared Redis.", labels=("kind",))
        for kind, count in backend.errors.items():
            errors.add_metric((kind,), count)
        yield errors

    def _places(self) -> Iterator[Metric]:
        taken = GaugeMetricFamily("pushdemo_places_taken", "Places for clients taken.", labels=("kind",))
        limit = GaugeMetricFamily("pushdemo_places_limit", "Places for clients there are.", labels=("kind",))
        clients = self._status.clients
        for kind, places in (("parked", clients.all), ("thread", clients.threads)):
            taken.add_metric((kind,), places.taken)
            limit.add_metric((kind,), places.limit)
        yield taken
        yield limit

    def _generators(self) -> Iterator[Metric]:
        metric = GaugeMetricFamily("pushdemo_generator_sessions", "Generator sessions.", labels=("state",))
        for state, count in self._status.sessions.info().items():
            metric.add_metric((state,), count)
        yield metric

    def _memorize(self) -> Iterator[Metric]:
        infos: dict[str, Any] = self._status.caches.info()
        for field, family, meaning in _MEMORIZE:
            name = "pushdemo_memorize_age_seconds" if field == "age" else f"pushdemo_memorize_{field}"
            metric = family(name, meaning, labels=("function",))
            for function, info in infos.items():
                if getattr(info, field) is not None:  # no value, no age
                    metric.add_metric((function,), getattr(info, field))
            yield metric


def prometheus_registry(status: Status) -> CollectorRegistry:
    """Return a registry with the figures of this application and of its process."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    ProcessCollector(registry=registry)
    return registry


def metrics(request: Request) -> Response:
    """View: the figures of `registry["pushdemo.prometheus"]` in Prometheus's text format, or OpenMetrics on request."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    body = encode(request.registry["pushdemo.prometheus"])
    return Response(body=body, headerlist=[("Content-Type", content_type), ("Vary", "Accept")])
