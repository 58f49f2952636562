"""pushdemo: a page shows what the server knows, as the server learns it.

`config.include("pushdemo")` adds push to a Pyramid application. The demo application is `pushdemo.demo`.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # Pyramid imports pkg_resources, and what that says would stand before the output of every command.
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
    from pushdemo.cache.memorize import memorize
    from pushdemo.cache.single_flight import RecursiveCallError
    from pushdemo.publisher import publisher
    from pushdemo.topics.catalog import TopicLimitError
    from pushdemo.topics.message import Message
    from pushdemo.topics.pattern import TopicValueError, topic
    from pushdemo.topics.topic import Topic
    from pushdemo.web.config import includeme
    from pushdemo.web.json_yield import json_yield
    from pushdemo.web.on_commit import publish_on_commit
    from pushdemo.web.settings import SettingsError

__all__ = [
    "Message",
    "RecursiveCallError",
    "SettingsError",
    "Topic",
    "TopicLimitError",
    "TopicValueError",
    "includeme",
    "json_yield",
    "memorize",
    "publish_on_commit",
    "publisher",
    "topic",
]
