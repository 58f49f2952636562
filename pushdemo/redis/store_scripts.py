"""The Lua scripts of memorized values at Redis: each runs as a whole, and nothing runs beside it."""

from __future__ import annotations

# In all of these KEYS are the values, the times and the claims of a function. ARGV[1] is how many milliseconds the
# caller's clock is ahead of this machine's, which is 0 but for a clock that is not a machine's. An entry is its times
# (when it was made, in milliseconds since 1970, and for how many it is fresh, stale and of use after an error), a line
# each, and its value.
_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
"""

# ARGV: a digest. Returns the time and the entry, if there is one that is still of use.
GET = f"""{_NOW}
local until_ = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[2]) or 0)
return {{string.format('%d', now), until_ > now and redis.call('HGET', KEYS[1], ARGV[2])}}
"""

# ARGV: a digest, a token, milliseconds, and 'claim' or 'renew'. Claims it for the token, or with 'renew' goes on having
# it; returns 1 if it has it. A claim that has expired and that nobody has taken over is still its holder's.
CLAIM = f"""{_NOW}
local holder, until_ = string.match(redis.call('HGET', KEYS[3], ARGV[2]) or '', '^(%w+) (%d+)$')
if holder and holder ~= ARGV[3] and tonumber(until_) > now then return 0 end
if ARGV[5] == 'renew' and holder ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[3], ARGV[2], string.format('%s %d', ARGV[3], now + ARGV[4]))
redis.call('PEXPIRE', KEYS[3], 60000 + ARGV[4])
return 1
"""

# ARGV: a digest, a token, for how many milliseconds the value is of use (0 to put none), how long ago it was made, its
# other times, how many values the function keeps, and the value. Returns 0 if the claim was not the token's any more.
SETTLE = f"""{_NOW}
local holder = string.match(redis.call('HGET', KEYS[3], ARGV[2]) or '', '^(%w+) ')
if holder ~= ARGV[3] then return 0 end
local kept = tonumber(ARGV[4])
if kept > 0 then
  local made = string.format('%d', now - ARGV[5])
  redis.call('HSET', KEYS[1], ARGV[2], made .. '\\n' .. ARGV[6] .. '\\n' .. ARGV[8])
  -- fractions of a millisecond, in which a thousand values are in the order in which they came
  local until_ = now - ARGV[5] + kept
  until_ = until_ + redis.call('ZCOUNT', KEYS[2], until_, until_ + 0.999) / 1000
  redis.call('ZADD', KEYS[2], string.format('%.3f', until_), ARGV[2])
  local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)
  for each = 1, #gone do
    redis.call('HDEL', KEYS[1], gone[each])
    redis.call('ZREM', KEYS[2], gone[each])
  end
  while redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[7]) do
    local first = redis.call('ZRANGE', KEYS[2], 0, 1)
    -- the one that is soonest of no use, but for the one that has just come
    local least = first[1] == ARGV[2] and first[2] or first[1]
    redis.call('HDEL', KEYS[1], least)
    redis.call('ZREM', KEYS[2], least)
  end
  local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
  if last then
    for each = 1, 2 do redis.call('PEXPIREAT', KEYS[each], string.format('%d', math.floor(last + 1000 - ARGV[1]))) end
  end
end
redis.call('HDEL', KEYS[3], ARGV[2])
return 1
"""

# KEYS[4] is the newest deletion of all: its number, and its token. In a Redis that was flushed the numbers go on higher
# than they ever were, in one that went back to an older copy of its data the token tells.
# ARGV: a digest, or '' for all; the function's name; the channel for news; a token. The news are KEYS[4], the number
# (c), the token (n) and that of the deletion before (p), the digest (d), and the name behind the line.
DELETE = """
if ARGV[1] == '' then
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[3], ARGV[1])
end
local number, before = string.match(redis.call('GET', KEYS[4]) or '', '^(%d+) (%w+)$')
if not number then
  local time = redis.call('TIME')
  number, before = time[1] * 1000000 + time[2], ''
end
number = string.format('%d', number + 1)
redis.call('SET', KEYS[4], number .. ' ' .. ARGV[4])
local news = {KEYS[4], 'c', number, 'n', ARGV[4], 'p', before, 'd', ARGV[1]}
redis.pcall('PUBLISH', ARGV[3], table.concat(news, ' ') .. '\\n' .. ARGV[2])
"""

COUNT = f"""{_NOW}
return redis.call('ZCOUNT', KEYS[2], string.format('(%d', now), '+inf')
"""
