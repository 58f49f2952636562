"""Publishing from outside of the application: another process, a shell. Any thread.

Messages go through the Redis that the application's nodes share, where those have left what is declared of each topic.
Nothing here needs the application.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pushdemo.topics import content
from pushdemo.topics.pattern import Reference, parse

if TYPE_CHECKING:  # the redis package is an extra
    from pushdemo.redis.outside import Outside


class Publisher:
    """See `publisher`."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    def publish(self, pattern: str | Reference, value: Any, /, *, event: str = "", **values: str | int) -> str:
        """Add a message with `value` to a topic, and return its id.

        `pattern` is the topic as it is declared, `values` are those of its placeholders; or it is a reference. `event`
        is the event's name. What `value` may be is the topic's content type's to say: see `Topic.publish`.

        Raises KeyError for a pattern that is not declared, naming those that are; TypeError or ValueError for what will
        not do; RuntimeError once the topic has ended; ConnectionError where Redis does not take the message.
        """
        reference = _refer(pattern, values)
        declared = self._outside.declared(reference.pattern)
        body = content.body(declared.content_type, value)
        message = self._outside.topic(reference, declared).append(body, "message", event=content.check_event(event))
        assert message is not None
        return message.id

    def content_type(self, pattern: str) -> str:
        """The type of a topic's messages. Raises KeyError for a pattern that is not declared."""
        return self._outside.declared(pattern).content_type

    def end_topic(self, pattern: str | Reference, /, **values: str | int) -> None:
        """End a topic: its clients get what there is, and a clean end. Raises what `publish` does."""
        reference = _refer(pattern, values)
        self._outside.topic(reference, self._outside.declared(reference.pattern)).end()

    def close(self) -> None:
        """Close the connections to Redis."""
        self._outside.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def publisher(address: str, namespace: str = "pushdemo") -> Publisher:
    """What publishes to an application's topics from another process: a Celery task, cron, a shell.

    `address` is the URL of the Redis that the application has as `pushdemo.redis_url`, with its
    `pushdemo.redis_namespace`; or the path of its ini file, which has both. It can be made before a process forks.
    Raises ValueError for a URL that will not do, or an ini without one; ModuleNotFoundError without the redis package.
    """
    if "://" not in address:
        from pushdemo.web.settings import settings_of

        settings = settings_of(address)
        if not settings.redis_url:
            raise ValueError(
                f"{address} has no pushdemo.redis_url: a process that shares its topics with none cannot be reached"
            )
        address, namespace = settings.redis_url, settings.redis_namespace
    from pushdemo.redis.outside import Outside

    return Publisher(Outside(address, namespace))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `pushdemo-publish`."""
    options = _arguments().parse_args(arguments)
    try:
        values: dict[str, str | int] = dict(_pair(text) for text in options.values)
        with publisher(options.address, options.namespace) as to:
            if options.end:
                to.end_topic(options.pattern, **values)
                return
            as_bytes = content.is_json(to.content_type(options.pattern))
            for text in _texts(options):
                to.publish(options.pattern, text.encode() if as_bytes else text, event=options.event, **values)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, ModuleNotFoundError) as error:
        sys.exit(f"pushdemo-publish: {error.args[0] if isinstance(error, KeyError) else error}")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pushdemo-publish",
        description="Publish to a topic of a running application, through the Redis that its nodes share. Without "
        "--value and --file, each line of standard input is a message.",
    )
    parser.add_argument("address", metavar="INI", help="the application's ini file, or the URL of its Redis")
    parser.add_argument("pattern", metavar="TOPIC", help='the topic as it is declared, such as "orders.{user}"')
    parser.add_argument("values", metavar="NAME=VALUE", nargs="*", help="the values of its placeholders")
    parser.add_argument("--namespace", default="pushdemo", help="pushdemo.redis_namespace, where a URL is given")
    parser.add_argument("--event", default="", help="the event's name")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--value", help="the message")
    what.add_argument("--file", type=Path, help="the file whose content is the message")
    what.add_argument("--end", action="store_true", help="end the topic instead")
    return parser


def _texts(options: argparse.Namespace) -> Iterator[str]:
    if options.value is not None:
        yield options.value
    elif options.file is not None:
        yield options.file.read_text(encoding="utf-8")
    else:
        yield from (line.rstrip("\r\n") for line in sys.stdin)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text} is not a placeholder's name=value")
    return name, value


def _refer(pattern: str | Reference, values: dict[str, str | int]) -> Reference:
    if not isinstance(pattern, str):
        if values:
            raise TypeError(f"{pattern.pattern} has its values already, and takes no more: {', '.join(values)}")
        return pattern
    return parse(pattern).refer(values)
