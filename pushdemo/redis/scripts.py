"""All Lua scripts at Redis: of topics, leases and memorized values. Each runs as a whole, and nothing runs beside it.

A topic has two keys. Its state is a hash: `epoch`, `number` (of the newest message), `notices` (after that message),
`nonce` (of the newest entry), `fence` (of the newest lease), `holder` (the node that has it), `ended`, and as declared
`history` and `lifetime`. Its stream holds the entries of that epoch. Two keys are common to all topics: `clock`, a
hash with `number`, which counts changes, and `life`, which tells a Redis that was flushed; and `changes`, a sorted set
that says at which number each topic has changed last. A script's first write is one that a full Redis refuses, so that
it is done wholly or not at all. Errors are caught where they mean that the data are not ours; others are raised by
doing the same again, as Redis 6 and 7 differ in how else to raise them.
"""

from __future__ import annotations

FORMAT = "1"  # of keys, entries and news
KEPT = 7 * 24 * 3600 * 1000  # milliseconds that a topic without a lifetime is kept after it was last used
MARGIN = 5000  # milliseconds more, in which a node that uses it says so
_LISTED = 10_000  # topics whose last change is known

# `life` returns the topic's state after it has begun a new life where that is needed: where there is none, or where
# what is in the keys is not ours (another type, a field that is no number). Where Redis knows less than the caller, or
# has something else in the place of the caller's newest entry, its data are an older copy (a restart, a fail-over): the
# numbers since would be given twice, so that is a new life too.
# `caller` is what the caller knows: its epoch ('' for none), an epoch for a new life, the number of its newest message,
# the id of its newest entry in the stream, and that entry's nonce ('' for none).
_LIFE = f"""
local function begin_life(state, stream, epoch)
  if redis.call('TYPE', state).ok ~= 'hash' then redis.call('DEL', state) end
  redis.call('HSET', state, 'epoch', epoch)
  redis.call('HDEL', state, 'number', 'notices', 'nonce', 'fence', 'holder', 'ended', 'history', 'lifetime')
  redis.call('DEL', stream)
  return {{epoch = epoch, number = 0, notices = 0, nonce = '', born = true}}
end
local function foreign(answer)
  return type(answer) == 'table' and answer.err and string.find(answer.err, 'WRONGTYPE')
end
local function whole(text) return text and string.find(text, '^%d+$') and #text < 16 and tonumber(text) or nil end
local function life(state, stream, caller)
  local fields = {{'epoch', 'number', 'notices', 'nonce', 'fence', 'holder', 'ended', 'history', 'lifetime'}}
  local found = redis.pcall('HMGET', state, unpack(fields))
  if foreign(found) then return begin_life(state, stream, caller[2]) end
  if found.err then redis.call('HMGET', state, unpack(fields)) end
  local topic = {{epoch = found[1], number = whole(found[2] or '0'), notices = whole(found[3] or '0'),
    nonce = found[4] or '', fence = found[5], holder = found[6], ended = found[7],
    history = whole(found[8]) and found[8], lifetime = (found[9] == '' or whole(found[9])) and found[9]}}
  local alive = topic.epoch and string.find(topic.epoch, '^%w+$') and topic.number and topic.notices
    and whole(topic.fence or '0') and not string.find(topic.nonce, '%W')
  if alive and topic.epoch == caller[1] then
    alive = topic.number >= tonumber(caller[3])
    if alive and caller[5] ~= '' then
      local entries = redis.pcall('XRANGE', stream, caller[4], caller[4])
      if entries.err and not foreign(entries) then redis.call('XRANGE', stream, caller[4], caller[4]) end
      alive = not entries.err and not (entries[1] and entries[1][2][2] ~= caller[5])
    end
  end
  return alive and topic or begin_life(state, stream, caller[2])
end
local function keep(state, stream, topic)
  local rest = (tonumber(topic.lifetime or '') or {KEPT}) + {MARGIN}
  redis.call('PEXPIRE', state, rest)
  redis.call('PEXPIRE', stream, rest)
end
local function declare(state, topic, history, lifetime)
  if history == '' or (topic.history == history and topic.lifetime == lifetime) then return false end
  redis.call('HSET', state, 'history', history, 'lifetime', lifetime)
  topic.history, topic.lifetime = history, lifetime
  return true
end
"""

# An entry in the stream has the fields n (its nonce), p (that of the entry before it), t (when, in milliseconds since
# 1970), b (the body), v (the format), k (the kind) where it is no message, and e (the event's name) where it has one.
# The news of it are one line: the format, then names and what they name, those of the entry with its id (i) and the
# epoch (l); and behind the line the body. Where news may not be published, others find the entry when they look.
_PUBLISH = f"""
local function changed(clock, changes, name)
  local number = redis.pcall('HINCRBY', clock, 'number', 1)
  if type(number) == 'table' then
    redis.call('DEL', clock)
    number = redis.call('HINCRBY', clock, 'number', 1)
  end
  if number == 1 then
    redis.call('HSETNX', clock, 'life', table.concat(redis.call('TIME'), '.'))
    redis.call('DEL', changes)
  end
  if type(redis.pcall('ZADD', changes, number, name)) == 'table' then
    redis.call('DEL', changes)
    redis.call('ZADD', changes, number, name)
  end
  redis.call('PEXPIRE', changes, 60000)
  if number % 1000 == 0 then redis.call('ZREMRANGEBYRANK', changes, 0, -{_LISTED + 1}) end
end
local function add(at, topic, entry)
  local number, notices = topic.number, topic.notices + 1
  if entry.kind == 'message' then number, notices = number + 1, 0 end
  local now = redis.call('TIME')
  local time = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
  local id = string.format('%d-%d', number, notices)
  local fields = {{'n', entry.nonce, 'p', topic.nonce, 't', time, 'b', entry.body, 'v', '{FORMAT}'}}
  local news = {{'{FORMAT}', 'n', entry.nonce, 'p', topic.nonce, 't', time, 'i', id, 'l', topic.epoch}}
  local function also(name, value)
    fields[#fields + 1], news[#news + 1] = name, name
    fields[#fields + 1], news[#news + 1] = value, value
  end
  if entry.kind ~= 'message' then also('k', entry.kind) end
  if entry.event ~= '' then also('e', entry.event) end
  local kept = tonumber(topic.history or entry.history) or 100
  local added = redis.pcall('XADD', at.stream, 'MAXLEN', kept, id, unpack(fields))
  if type(added) == 'table' and added.err then
    if foreign(added) or string.find(added.err, 'equal or smaller') then return nil end
    redis.call('XADD', at.stream, 'MAXLEN', kept, id, unpack(fields))
  end
  redis.call('HSET', at.state, 'number', number, 'notices', notices, 'nonce', entry.nonce)
  if entry.kind == 'end' then redis.call('HSET', at.state, 'ended', 1) end
  if string.find(entry.event, ' ', 1, true) then news = {{'{FORMAT}'}} end -- spaces divide its fields: others look
  redis.pcall('PUBLISH', at.channel, table.concat(news, ' ') .. '\\n' .. entry.body)
  return number, notices
end
local function publish(at, caller, entry)
  local topic = life(at.state, at.stream, caller)
  local leased = entry.fence ~= ''
  if leased and (topic.epoch ~= caller[1] or topic.fence ~= entry.fence) then return {{'lost'}} end
  if topic.nonce == entry.nonce then return {{'added', topic.epoch, topic.number, topic.notices}} end
  if topic.ended then return {{'ended'}} end
  local number, notices = add(at, topic, entry)
  if not number then -- something that is not ours is in the stream
    topic = begin_life(at.state, at.stream, caller[2])
    if leased then return {{'lost'}} end
    number, notices = add(at, topic, entry)
  end
  declare(at.state, topic, entry.history, entry.lifetime)
  keep(at.state, at.stream, topic)
  if at.changes then changed(at.clock, at.changes, entry.name) end
  return {{'added', topic.epoch, number, notices, topic.nonce}}
end
"""

# publish.lua, which programs in other languages run, has these functions too: a test holds them equal.
SHARED = f"{_LIFE}{_PUBLISH}"

# Returns the epoch, the number, the notices, and the entries that the caller lacks: all where its epoch is another.
_SINCE = """
local function since(topic, stream, caller)
  local last = string.format('%d-%d', topic.number, topic.notices)
  local from = topic.epoch == caller[1] and '(' .. caller[4] or '-'
  local entries = {}
  if topic.epoch ~= caller[1] or last ~= caller[4] then entries = redis.pcall('XRANGE', stream, from, last) end
  if foreign(entries) then entries = {} end
  if entries.err then redis.call('XRANGE', stream, from, last) end
  return {topic.epoch, topic.number, topic.notices, entries}
end
"""

# In what follows ARGV begins with the five that `life` knows as the caller's.
_CALLER = "local caller = {ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]}\n"

# KEYS: the state, the stream, and for a topic that anybody looks at `clock` and `changes`.
# ARGV[6] on: the entry's nonce, kind, body and event ('' for none), the fence of the lease ('' without one), the
# declared history and lifetime ('' and '' for a caller that has not declared the topic), the channel, the topic's name.
# Returns 'added' with the epoch, the number and the notices and, unless it was there before, the nonce of the entry
# before it; 'lost' (the lease), or 'ended'.
PUBLISH = f"""{_LIFE}{_PUBLISH}{_CALLER}
return publish({{state = KEYS[1], stream = KEYS[2], clock = KEYS[3], changes = KEYS[4], channel = ARGV[13]}}, caller,
  {{nonce = ARGV[6], kind = ARGV[7], body = ARGV[8], event = ARGV[9], fence = ARGV[10], history = ARGV[11],
    lifetime = ARGV[12], name = ARGV[14]}})
"""

# KEYS: the state and the stream. ARGV[6] on: the declared history and lifetime. Returns what `since` does.
LOOK = f"""{_LIFE}{_SINCE}{_CALLER}
local topic = life(KEYS[1], KEYS[2], caller)
if declare(KEYS[1], topic, ARGV[6], ARGV[7]) or topic.born then keep(KEYS[1], KEYS[2], topic) end
return since(topic, KEYS[2], caller)
"""

# KEYS: `clock` and `changes`. ARGV: the life and the number that the caller knows, what states' keys begin with, and
# the most topics to be told of. Returns the life, the number, and of each topic that has changed since its name, epoch,
# number and notices; without those, where the caller must look at all of its topics, 'all'.
SURVEY = """
local found = redis.pcall('HMGET', KEYS[1], 'life', 'number')
if not found.err and not found[1] then
  redis.pcall('HSET', KEYS[1], 'life', table.concat(redis.call('TIME'), '.'))
  found = redis.pcall('HMGET', KEYS[1], 'life', 'number')
end
local life, number = not found.err and found[1] or '', tonumber(not found.err and found[2] or 0) or 0
local answer = {life, string.format('%d', number)}
if life ~= ARGV[1] or number < tonumber(ARGV[2]) then
  answer[3] = 'all'
  return answer
end
local most = tonumber(ARGV[4])
local names = redis.pcall('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[2], '+inf', 'LIMIT', 0, most + 1)
if names.err or #names > most then
  answer[3] = 'all'
  return answer
end
for _, name in ipairs(names) do
  local state = redis.pcall('HMGET', ARGV[3] .. name, 'epoch', 'number', 'notices')
  if not state.err and state[1] then
    for _, each in ipairs({name, state[1], state[2] or '0', state[3] or '0'}) do answer[#answer + 1] = each end
  end
end
return answer
"""

# KEYS: states and streams by turns. ARGV: the lifetime of each topic ('' for none): it is in use.
TOUCH = f"""
for each = 1, #ARGV do
  local rest = (tonumber(ARGV[each]) or {KEPT}) + {MARGIN}
  redis.call('PEXPIRE', KEYS[2 * each - 1], rest)
  redis.call('PEXPIRE', KEYS[2 * each], rest)
end
"""

# KEYS: keys of declarations, and last that of the channels. ARGV: milliseconds that they are kept, and what they hold.
DECLARE = """
for each = 1, #KEYS do redis.call('SET', KEYS[each], ARGV[each + 1], 'PX', ARGV[1]) end
"""

# A lease is in the topic's state: its fence and its holder. It lasts as long as the holder's key, which expires, and
# also after that until another node takes it.
# KEYS: the key of the caller's node, then those of other nodes. ARGV: how many milliseconds it lasts.
# Returns for each of the others whether it is there.
RENEW = """
redis.call('SET', KEYS[1], 1, 'PX', ARGV[1])
local there = {}
for each = 2, #KEYS do there[each - 1] = redis.call('EXISTS', KEYS[each]) end
return there
"""

# KEYS: the state, the stream. ARGV[6] on: the caller's node, what the keys of nodes begin with, the topic's channel,
# where a node hears that another has taken what it had offered, and the fence of the lease that the caller has had.
# Where nobody has taken that since, it goes on with the same fence: its source may be saying something.
# Returns what `since` does, the fence of the caller's lease (0 without one), and the holder ('' of an ended topic).
TAKE = f"""{_LIFE}{_SINCE}{_CALLER}
local topic = life(KEYS[1], KEYS[2], caller)
if topic.born then keep(KEYS[1], KEYS[2], topic) end
local answer = since(topic, KEYS[2], caller)
answer[5], answer[6] = 0, topic.holder or ''
if topic.ended then
  answer[6] = ''
elseif topic.holder == ARGV[6] and topic.fence then
  answer[5] = tonumber(topic.fence)
elseif not topic.holder and topic.fence == ARGV[9] and topic.epoch == caller[1] then
  answer[5], answer[6] = tonumber(topic.fence), ARGV[6]
  redis.call('HSET', KEYS[1], 'holder', ARGV[6])
elseif not topic.holder or redis.call('EXISTS', ARGV[7] .. topic.holder) == 0 then
  local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
  answer[5], answer[6] = fence, ARGV[6]
  redis.call('HSET', KEYS[1], 'holder', ARGV[6])
  local news = {{'{FORMAT}', 'k', 'taken', 'l', topic.epoch, 'f', fence, 'h', ARGV[6]}}
  redis.pcall('PUBLISH', ARGV[8], table.concat(news, ' ') .. '\\n')
end
return answer
"""

# KEYS: the state. ARGV: the fence of the lease, the holder, the channel. Another node may take the lease from now on,
# and is told so; until one does, it is good.
OFFER = f"""
local state = redis.pcall('HMGET', KEYS[1], 'fence', 'holder')
if not state.err and state[1] == ARGV[1] and state[2] == ARGV[2] then
  redis.call('HDEL', KEYS[1], 'holder')
  redis.pcall('PUBLISH', ARGV[3], '{FORMAT} k free\\n')
end
"""

# KEYS: the key of the caller's node, which stops. ARGV: the channel on which others hear of it, and the node.
LEAVE = f"""
redis.call('DEL', KEYS[1])
redis.pcall('PUBLISH', ARGV[1], '{FORMAT} k gone\\n' .. ARGV[2])
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
# ARGV: a digest, or '' for all; the function's name; the channel for news; a token. The news are the format, the number
# (c), the token (n) and that of the deletion before (p), the digest (d), and the name behind the line.
DELETE = f"""
if ARGV[1] == '' then
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[3], ARGV[1])
end
local newest = redis.pcall('GET', KEYS[4])
if type(newest) == 'table' then redis.call('DEL', KEYS[4]) end
local number, before = string.match(type(newest) == 'string' and newest or '', '^(%d+) (%w+)$')
if not number then
  local time = redis.call('TIME')
  number, before = time[1] * 1000000 + time[2], ''
end
number = string.format('%d', number + 1)
redis.call('SET', KEYS[4], number .. ' ' .. ARGV[4])
local news = {{'{FORMAT}', 'c', number, 'n', ARGV[4], 'p', before, 'd', ARGV[1]}}
redis.pcall('PUBLISH', ARGV[3], table.concat(news, ' ') .. '\\n' .. ARGV[2])
"""

# KEYS: the newest deletion. Returns it.
DELETIONS = """
local newest = redis.pcall('GET', KEYS[1])
return type(newest) == 'string' and newest or ''
"""

COUNT = f"""{_NOW}
return redis.call('ZCOUNT', KEYS[2], string.format('(%d', now), '+inf')
"""

_MILLISECONDS = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# KEYS: the nodes, by when they are taken for dead; the clients of this node by topic. ARGV: the node, the milliseconds
# until it is taken for dead, 'all' or 'changes', and names and numbers of clients. Returns 0 where Redis has nothing
# that the changes could be changes of.
LISTENERS = f"""{_MILLISECONDS}
if ARGV[3] == 'all' then redis.call('DEL', KEYS[2])
elseif redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
for each = 4, #ARGV, 2 do
  if ARGV[each + 1] == '0' then redis.call('HDEL', KEYS[2], ARGV[each])
  else redis.call('HSET', KEYS[2], ARGV[each], ARGV[each + 1]) end
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', now))
redis.call('ZADD', KEYS[1], string.format('%d', now + ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], 10 * ARGV[2])
return 1
"""

# KEYS: the nodes. ARGV: a topic, the node that asks, what the key of a node's clients begins with. Returns how many
# clients the topic has on the other nodes.
COUNT_LISTENERS = f"""{_MILLISECONDS}
local count = 0
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%d', now), '+inf')) do
  if node ~= ARGV[2] then
    local clients = redis.pcall('HGET', ARGV[3] .. node, ARGV[1])
    count = count + (type(clients) == 'string' and tonumber(clients) or 0)
  end
end
return count
"""

# KEYS: the orders, a stream. ARGV: an order, the node that gives it, the channel for news, milliseconds that orders are
# remembered. The news are the format, the order's id (i), that of the one before (p), the node (w), and the order.
ORDER = f"""
if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then redis.call('DEL', KEYS[1]) end
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', 10000, '*', 'w', ARGV[2], 'b', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
local news = {{'{FORMAT}', 'i', id, 'p', newest and newest[1] or '0-0', 'w', ARGV[2]}}
redis.pcall('PUBLISH', ARGV[3], table.concat(news, ' ') .. '\\n' .. ARGV[1])
"""

# KEYS: the orders. ARGV: the id of the newest that is known, or ''. Returns the id of the newest, then the id, the node
# and the text of each that is not known.
ORDERS = """
if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then return {ARGV[1] ~= '' and ARGV[1] or '0-0'} end
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local found = {newest and newest[1] or '0-0'}
if ARGV[1] == '' then return found end
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+')) do
  found[#found + 1] = entry[1]
  for each = 1, #entry[2], 2 do
    if entry[2][each] == 'w' then found[#found + 1] = entry[2][each + 1] end
  end
  for each = 1, #entry[2], 2 do
    if entry[2][each] == 'b' then found[#found + 1] = entry[2][each + 1] end
  end
end
return found
"""
