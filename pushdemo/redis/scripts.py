"""The Lua scripts that topics and their producers run at Redis: each runs as a whole, and nothing runs beside it.

In all of them KEYS[1] is the topic's state, a hash with `epoch`, `number` (of the newest message), `notices` (behind
it), `nonce` (of the newest entry), `fence` (of the newest lease) and `ended`; KEYS[2] is the stream of the epoch that
the caller knows. A script's first write is one that a full Redis refuses, so that it is done wholly or not at all.
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
