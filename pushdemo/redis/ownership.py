"""Which process has a generator session, at Redis: a key for each session, with the process that has it as its value.

A key expires, so that another process may begin the session anew when its process dies; the process renews the keys of
its sessions each second. A process that is asked to close another's session marks the key: its process sees the mark
when it renews. Any thread may call anything; RedisUnavailableError, which all of it raises, is a ConnectionError.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence

from pushdemo.redis.connection import Link

EXPIRY = 4.0  # seconds until the session of a process that died may begin elsewhere; less than poll.js asks again

_CLOSED = "closed"  # the value of a key whose session its process is to close

# KEYS: a session. ARGV: this process, milliseconds. Returns 1 where the session is this process's from now on.
CLAIM = f"""
local has = redis.call('GET', KEYS[1])
if has and has ~= ARGV[1] and has ~= '{_CLOSED}' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS: sessions. ARGV as above. Returns the numbers of those that this process has to close. A key that is gone was in
# a Redis that was restarted, or expired while this process was suspended, and nobody else has begun the session.
RENEW = """
local lost = {}
for each, key in ipairs(KEYS) do
  local has = redis.call('GET', key)
  if has and has ~= ARGV[1] then
    lost[#lost + 1] = each
  else
    redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
  end
end
return lost
"""

# KEYS: sessions. ARGV: this process.
RELEASE = """
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
"""

_MOST = 1000  # keys in one call of a script, which other clients of Redis wait for


class SessionOwnership:
    """See Ownership in web/broker.py."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._id = uuid.uuid4().hex
        self._claim = link.script(CLAIM)
        self._renew = link.script(RENEW)
        self._release = link.script(RELEASE)

    @property
    def _process(self) -> str:
        """This process, which may have been forked from another."""
        return f"{self._id}-{os.getpid()}"

    def claim(self, name: str) -> bool:
        """See Ownership."""
        return bool(self._claim([self._key(name)], [self._process, round(EXPIRY * 1000)]))

    def is_elsewhere(self, name: str) -> bool:
        """See Ownership."""
        value = self._link.command("GET", self._key(name))
        return value is not None and value.decode() not in (self._process, _CLOSED)

    def renew(self, names: Sequence[str]) -> list[str]:
        """See Ownership."""
        lost = []
        for first in range(0, len(names), _MOST):
            some = names[first : first + _MOST]
            found = self._renew([self._key(name) for name in some], [self._process, round(EXPIRY * 1000)])
            lost += [some[number - 1] for number in found]
        return lost

    def release(self, names: Sequence[str]) -> None:
        """See Ownership."""
        for first in range(0, len(names), _MOST):
            self._release([self._key(name) for name in names[first : first + _MOST]], [self._process])

    def close(self, name: str) -> None:
        """See Ownership. A session that nobody has needs no mark."""
        self._link.command("SET", self._key(name), _CLOSED, "PX", round(EXPIRY * 1000), "XX")

    def _key(self, name: str) -> str:
        return self._link.key("generator", name)
