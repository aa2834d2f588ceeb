-- Hand events to a consumer: retries that are due, then what dead consumers held, then new ones by weighted draw among the lanes.
-- Every ticket that is handed out stands for exactly one event, so the stream's lag and pending are right at every step.
-- KEYS  1 tickets, 2 events, 3 held hash (ticket to member), 4 retry set, 5 tries hash, 6..8 ready sets, 9..11 fair-share hashes
-- ARGV  1 group, 2 consumer, 3 count, 4 claim_idle_ms (0: leave other consumers' events alone), 5..7 lane weights, 8.. one number in [0,1) an event
-- gives {last ticket id ('' when there may be more), {ticket, member, '<enqueued_ms> <record>', tries, refusals, ms since the first refusal}...}
local group, consumer, count, idle = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

-- What was handed out before. Of a ticket that stands for nothing any more, the member is false.
local tickets, members = {}, {}
local function take_over(found)
  if #found == 0 then return end
  local words = {KEYS[1], group, consumer, 0, unpack(found)}
  words[#words + 1] = 'JUSTID'
  redis.call('XCLAIM', unpack(words))
  for i, member in ipairs(redis.call('HMGET', KEYS[3], unpack(found))) do
    tickets[#tickets + 1], members[#members + 1] = found[i], member
  end
end
local due = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, count)
if #due > 0 then redis.call('ZREM', KEYS[4], unpack(due)) end
take_over(due)
-- Orphans: idle, and not because they wait for their retry. XAUTOCLAIM would look at ten entries for each it may give, always from
-- the first, and never reach an orphan behind enough that live or wait.
local from = '-'
while idle > 0 and #tickets < count do
  local page, orphans = redis.call('XPENDING', KEYS[1], group, 'IDLE', idle, from, '+', 100), {}
  for _, row in ipairs(page) do
    if #tickets + #orphans < count and not redis.call('ZSCORE', KEYS[4], row[1]) then orphans[#orphans + 1] = row[1] end
    from = '(' .. row[1]
  end
  take_over(orphans)
  if #page < 100 then break end
end

-- New ones: first whose turn each is, then all of a lane at once.
local want, newest = count - #tickets, ''
local read = want > 0 and redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', want, 'STREAMS', KEYS[1], '>')
local entries = read and read[1] and read[1][2] or {}
local waiting, drawn, lanes = {0, 0, 0}, {0, 0, 0}, {}
for lane = 1, #entries > 0 and 3 or 0 do waiting[lane] = redis.call('ZCARD', KEYS[5 + lane]) end
for i = 1, #entries do
  local total = 0
  for lane = 1, 3 do
    if drawn[lane] < waiting[lane] then total = total + ARGV[4 + lane] end
  end
  local draw = ARGV[7 + i] * total
  for lane = 1, 3 do
    if drawn[lane] < waiting[lane] then
      lanes[i] = lane
      draw = draw - ARGV[4 + lane]
      if draw < 0 then break end
    end
  end
  if lanes[i] then drawn[lanes[i]] = drawn[lanes[i]] + 1 end
end
local popped = {}
for lane = 1, 3 do
  if drawn[lane] > 0 then
    popped[lane] = redis.call('ZPOPMIN', KEYS[5 + lane], drawn[lane])
    if drawn[lane] == waiting[lane] then redis.call('DEL', KEYS[8 + lane])
    else redis.call('HSET', KEYS[8 + lane], 'clock', popped[lane][2 * drawn[lane]]) end
  end
end
local pairs_held = {}
for i, entry in ipairs(entries) do
  local member = lanes[i] and table.remove(popped[lanes[i]], 1)
  if member then
    table.remove(popped[lanes[i]], 1) -- its score
    pairs_held[#pairs_held + 1], pairs_held[#pairs_held + 2] = entry[1], member
  end
  tickets[#tickets + 1], members[#members + 1] = entry[1], member or false
end
if #pairs_held > 0 then redis.call('HSET', KEYS[3], unpack(pairs_held)) end
if want > #entries then
  local last = entries[#entries] or redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  newest = last and last[1] or ''
end

-- What they stand for, and how often that was tried. A ticket that stands for nothing is done with.
if #tickets == 0 then return {newest} end
local names, fields = {}, {}
for i, member in ipairs(members) do
  names[i] = member or ''
  for _, before in ipairs({'', '\0refused:', '\0refused_ms:'}) do fields[#fields + 1] = before .. names[i] end
end
local records, before = redis.call('HMGET', KEYS[2], unpack(names)), redis.call('HMGET', KEYS[5], unpack(fields))
local out, tries = {newest}, {}
for i, ticket in ipairs(tickets) do
  if records[i] then
    local tried, refused, refused_ms = unpack(before, 3 * i - 2, 3 * i)
    out[#out + 1] = {ticket, names[i], records[i], (tried or 0) + 1, tonumber(refused or 0), refused_ms and now - refused_ms or 0}
    tries[#tries + 1] = names[i]
    tries[#tries + 1] = (tried or 0) + 1
  else
    redis.call('XACK', KEYS[1], group, ticket)
    redis.call('HDEL', KEYS[3], ticket)
  end
end
if #tries > 0 then redis.call('HSET', KEYS[5], unpack(tries)) end
return out
