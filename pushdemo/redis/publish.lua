-- Publishes a message to a topic of a pushdemo application: see docs/publishing.md.
--
--   redis-cli --eval publish.lua pushdemo , 'orders.{user}' '{"id": 5}' user=ann
--
-- KEYS[1]: the application's pushdemo.redis_namespace. ARGV[1]: the topic's name or pattern as it is declared.
-- ARGV[2]: the message. ARGV[3] on: the values of the pattern's placeholders, as name=value; event=name names the event.
-- Returns the message's id. Redis 6.2 or later.

local function begin_life(state, stream, epoch)
  if redis.call('TYPE', state).ok ~= 'hash' then redis.call('DEL', state) end
  redis.call('HSET', state, 'epoch', epoch)
  redis.call('HDEL', state, 'number', 'notices', 'nonce', 'fence', 'holder', 'ended', 'history', 'lifetime')
  redis.call('DEL', stream)
  return {epoch = epoch, number = 0, notices = 0, nonce = '', born = true}
end
local function foreign(answer)
  return type(answer) == 'table' and answer.err and string.find(answer.err, 'WRONGTYPE')
end
local function whole(text) return text and string.find(text, '^%d+$') and #text < 16 and tonumber(text) or nil end
local function life(state, stream, caller)
  local fields = {'epoch', 'number', 'notices', 'nonce', 'fence', 'holder', 'ended', 'history', 'lifetime'}
  local found = redis.pcall('HMGET', state, unpack(fields))
  if foreign(found) then return begin_life(state, stream, caller[2]) end
  if found.err then redis.call('HMGET', state, unpack(fields)) end
  local topic = {epoch = found[1], number = whole(found[2] or '0'), notices = whole(found[3] or '0'),
    nonce = found[4] or '', fence = found[5], holder = found[6], ended = found[7],
    history = whole(found[8]) and found[8], lifetime = (found[9] == '' or whole(found[9])) and found[9]}
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
  local rest = (tonumber(topic.lifetime or '') or 604800000) + 5000
  redis.call('PEXPIRE', state, rest)
  redis.call('PEXPIRE', stream, rest)
end
local function declare(state, topic, history, lifetime)
  if history == '' or (topic.history == history and topic.lifetime == lifetime) then return false end
  redis.call('HSET', state, 'history', history, 'lifetime', lifetime)
  topic.history, topic.lifetime = history, lifetime
  return true
end

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
  if number % 1000 == 0 then redis.call('ZREMRANGEBYRANK', changes, 0, -10001) end
end
local function add(at, topic, entry)
  local number, notices = topic.number, topic.notices + 1
  if entry.kind == 'message' then number, notices = number + 1, 0 end
  local now = redis.call('TIME')
  local time = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
  local id = string.format('%d-%d', number, notices)
  local fields = {'n', entry.nonce, 'p', topic.nonce, 't', time, 'b', entry.body, 'v', '1'}
  local news = {'1', 'n', entry.nonce, 'p', topic.nonce, 't', time, 'i', id, 'l', topic.epoch}
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
  if string.find(entry.event, ' ', 1, true) then news = {'1'} end -- spaces divide its fields: others look
  redis.pcall('PUBLISH', at.channel, table.concat(news, ' ') .. '\n' .. entry.body)
  return number, notices
end
local function publish(at, caller, entry)
  local topic = life(at.state, at.stream, caller)
  local leased = entry.fence ~= ''
  if leased and (topic.epoch ~= caller[1] or topic.fence ~= entry.fence) then return {'lost'} end
  if topic.nonce == entry.nonce then return {'added', topic.epoch, topic.number, topic.notices} end
  if topic.ended then return {'ended'} end
  local number, notices = add(at, topic, entry)
  if not number then -- something that is not ours is in the stream
    topic = begin_life(at.state, at.stream, caller[2])
    if leased then return {'lost'} end
    number, notices = add(at, topic, entry)
  end
  declare(at.state, topic, entry.history, entry.lifetime)
  keep(at.state, at.stream, topic)
  if at.changes then changed(at.clock, at.changes, entry.name) end
  return {'added', topic.epoch, number, notices, topic.nonce}
end

local prefix = '{' .. KEYS[1] .. '}:'
local found = redis.call('GET', prefix .. '1:declared:' .. ARGV[1])
if not found then return redis.error_reply('NOTOPIC no topic ' .. ARGV[1] .. ' is declared') end
local declared = cjson.decode(found)
local values, event = {}, ''
for each = 3, #ARGV do
  local name, value = string.match(ARGV[each], '^([%w_]+)=(.+)$')
  if not name then return redis.error_reply('NOVALUE ' .. ARGV[each] .. ' is not name=value') end
  if name == 'event' then event = value else values[name] = value end
end
local reserved = ' open message error begin reset failing working end '
if string.find(event, '[%c ]') or (event ~= '' and string.find(reserved, ' ' .. event .. ' ', 1, true)) then
  return redis.error_reply('NOEVENT an event cannot be named ' .. event)
end
local missing
local name = string.gsub(ARGV[1], '{([%w_]+)}()', function(key, position)
  local value = values[key]
  if not value then missing = key return '' end
  values[key] = nil
  value = string.gsub(value, '[^%w_-]', function(byte) return string.format('%%%02X', string.byte(byte)) end)
  local after = string.sub(ARGV[1], position, position)
  return '~' .. value .. ((after == '' or after == '.') and '' or '~')
end)
missing = missing or next(values)
if missing then return redis.error_reply('NOVALUE ' .. ARGV[1] .. ': ' .. missing .. ' is missing, or no placeholder') end
local body, content_type = ARGV[2], string.lower(declared.content_type)
if string.find(content_type, '^application/xml') or string.find(content_type, '^text/xml') then
  for _, pair in ipairs({{'&', '&amp;'}, {'<', '&lt;'}, {'>', '&gt;'}, {'\r', '&#13;'}}) do
    body = string.gsub(body, pair[1], pair[2])
  end
  body = string.gsub(body, '[%z\1-\8\11\12\14-\31]', '\239\191\189')
  body = '<message>' .. body .. '</message>'
elseif string.find(content_type, '/json') or string.find(content_type, '+json', 1, true) then
  if not pcall(cjson.decode, body) then return redis.error_reply('NOJSON the message is not JSON') end
  body = string.gsub(body, '[\r\n]', ' ')
end
local now = redis.call('TIME')
local token = redis.sha1hex(now[1] .. '.' .. now[2] .. name .. body)
local answer = publish(
  {state = prefix .. '1:topic:' .. name, stream = prefix .. '1:stream:' .. name,
    clock = prefix .. '1:clock', changes = prefix .. '1:changes',
    channel = (redis.call('GET', prefix .. '1:channels') or '') .. name},
  {'', string.sub(token, 1, 8), '0', '0-0', ''},
  {nonce = string.sub(token, 1, 16), kind = 'message', body = body, event = event, fence = '', name = name,
    history = string.format('%d', declared.history),
    lifetime = declared.lifetime ~= cjson.null and string.format('%d', declared.lifetime * 1000) or ''})
if answer[1] == 'ended' then return redis.error_reply('ENDED topic ' .. name .. ' has ended') end
return answer[2] .. '-' .. string.format('%d', answer[3])
