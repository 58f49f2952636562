"""The Lua scripts that run at Redis: those of topics and their producers, then those of memorized values.

Redis runs a script as a whole, and nothing beside it. In the scripts of topics KEYS[1] is the topic's state, a hash
with `epoch`, `number` (of the newest message), `notices` (behind it), `nonce` (of the newest entry), `fence` (of the
newest lease) and `ended`; KEYS[2] is the stream of the epoch that the caller knows. A script's first write is one that
a full Redis refuses, so that it is done wholly or not at all.
"""

from __future__ import annotations

# ARGV: the epoch that the caller knows ('' for none), one for a new life, the number of the caller's newest message,
# its newest entry's id in the stream, and that entry's nonce ('' for none).
# A state with less than the caller knows, or a stream with something else in that place, comes from an older copy of
# the data (a restart, a fail-over): the numbers since would be given twice, so it is a new life.
_LIFE = """
local known = redis.call('HMGET', KEYS[1], 'epoch', 'number', 'notices', 'nonce', 'fence', 'ended')
local epoch, number, notices = known[1], tonumber(known[2] or 0), tonumber(known[3] or 0)
local alive = epoch
if epoch == ARGV[1] then
  if number < tonumber(ARGV[3]) then
    alive = false
  elseif ARGV[5] ~= '' then
    local entry = redis.call('XRANGE', KEYS[2], ARGV[4], ARGV[4])[1]
    alive = not (entry and entry[2][2] ~= ARGV[5])
  end
end
if not alive then
  if epoch then
    redis.call('DEL', KEYS[1], KEYS[2])
  end
  epoch, number, notices = ARGV[2], 0, 0
  known = {}
  redis.call('HSET', KEYS[1], 'epoch', epoch)
end
"""

# Returns the epoch of the topic's life, which begins now where there is none, and the id of its newest entry.
LOOK = f"{_LIFE}\nreturn {{epoch, number, notices}}"

# ARGV from the sixth on: the entry's nonce, kind and body, the fence of the lease ('' without one), how many entries
# the stream keeps, for how many seconds an ended topic is remembered, and the channel for news.
# An entry in the stream has the fields n (its nonce), p (that of the entry before it), t (when, in milliseconds since
# 1970), b (the body), and k (the kind) where it is no message. The news of it have the same, with its id (i) and the
# epoch (e): the topic's key, names and what they name, and the body behind the line.
# Returns 'added' with the entry's id and, unless it was there before, the nonce of the entry before it; 'lost' (the
# lease), 'ended', or 'epoch' where the caller knows another one. Where news may not be published, others find the entry
# when they look.
PUBLISH = f"""{_LIFE}
if epoch ~= ARGV[1] then return {{'epoch'}} end
if ARGV[9] ~= '' and known[5] ~= ARGV[9] then return {{'lost'}} end
if known[4] == ARGV[6] then return {{'added', number, notices}} end
if known[6] then return {{'ended'}} end
if ARGV[7] == 'message' then
  number, notices = number + 1, 0
else
  notices = notices + 1
end
local now = redis.call('TIME')
local time = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
local id = string.format('%d-%d', number, notices)
local entry = {{'n', ARGV[6], 'p', known[4] or '', 't', time, 'b', ARGV[8]}}
if ARGV[7] ~= 'message' then
  entry[9], entry[10] = 'k', ARGV[7]
end
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[10], id, unpack(entry))
redis.call('HSET', KEYS[1], 'number', number, 'notices', notices, 'nonce', ARGV[6])
if ARGV[7] == 'end' then
  redis.call('HSET', KEYS[1], 'ended', 1)
  redis.call('EXPIRE', KEYS[1], ARGV[11])
  redis.call('EXPIRE', KEYS[2], ARGV[11])
end
local news = {{KEYS[1], 'e', epoch, 'i', id, 'n', ARGV[6], 'p', known[4] or '', 't', time, 'k', ARGV[7]}}
redis.pcall('PUBLISH', ARGV[12], table.concat(news, ' ') .. '\\n' .. ARGV[8])
return {{'added', number, notices, known[4] or ''}}
"""

# KEYS from the third on: the lease, which holds its fence and expires, and a key that is there while others want it.
# ARGV from the sixth on: the fence of the caller's lease ('' without one), and milliseconds for a lease and for a wish.
# Returns the epoch, the fence of the caller's lease or 0, and whether others want it. A lease that expired without
# being given to another is its holder's still.
LEASE = f"""{_LIFE}
if known[6] then return {{epoch, 0, 0}} end
if ARGV[6] ~= '' and epoch == ARGV[1] and known[5] == ARGV[6] then
  redis.call('SET', KEYS[3], ARGV[6], 'PX', ARGV[7])
  return {{epoch, tonumber(ARGV[6]), redis.call('EXISTS', KEYS[4])}}
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('SET', KEYS[4], 1, 'PX', ARGV[8])
  return {{epoch, 0, 1}}
end
local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('SET', KEYS[3], fence, 'PX', ARGV[7])
redis.call('DEL', KEYS[4])
return {{epoch, fence, 0}}
"""

# KEYS: the lease; ARGV: its fence.
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

# -- memorized values

# In these scripts KEYS are the values, the times and the claims of one function. ARGV[1] is how many milliseconds the
# caller's clock is ahead of this machine's: 0 except in tests, whose clocks are not a machine's. An entry has three
# parts, divided by line ends: when it was made (milliseconds since 1970); for how many milliseconds it is fresh, stale
# and of use after an error; the value.
_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
"""

# ARGV: a digest. Returns the time, and the entry if there is one that is still of use.
GET = f"""{_NOW}
local until_ = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[2]) or 0)
return {{string.format('%d', now), until_ > now and redis.call('HGET', KEYS[1], ARGV[2])}}
"""

# ARGV: a digest, a token, milliseconds, and 'claim' or 'renew'. Gives the claim to the token for so many milliseconds;
# with 'renew' only if the token has it already. Returns 1 if the token has the claim now. A claim that has expired and
# that nobody has taken over is still its holder's.
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
