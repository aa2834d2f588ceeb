-- Hand events to a consumer: retries that are due, then what dead consumers held, then new ones by weighted draw among the lanes.
-- Every ticket that is handed out stands for exactly one event, so the stream's lag and pending are right at every step.
-- KEYS  1 tickets, 2 events, 3 held hash (ticket to member), 4 retry set, 5 tries hash, 6..8 ready sets, 9..11 fair-share hashes
-- ARGV  1 group, 2 consumer, 3 count, 4 claim_idle_ms (0: leave other consumers' events alone), 5..7 lane weights, 8.. one number in [0,1) an event
-- gives {last ticket id, {ticket, member, '<enqueued_ms> <record>', tries, refusals, ms since the first refusal}...}
local group, consumer, count, idle = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local out = {''}
local function hand(ticket)
  local member = redis.call('HGET', KEYS[3], ticket)
  local record = member and redis.call('HGET', KEYS[2], member)
  if not record then
    redis.call('XACK', KEYS[1], group, ticket)
    redis.call('HDEL', KEYS[3], ticket)
    return
  end
  local refused = redis.call('HMGET', KEYS[5], '\0refused:' .. member, '\0refused_ms:' .. member)
  local tries = redis.call('HINCRBY', KEYS[5], member, 1)
  out[#out + 1] = {ticket, member, record, tries, tonumber(refused[1] or 0), refused[2] and now - tonumber(refused[2]) or 0}
end

for _, ticket in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, count)) do
  redis.call('ZREM', KEYS[4], ticket)
  redis.call('XCLAIM', KEYS[1], group, consumer, 0, ticket, 'JUSTID')
  hand(ticket)
end

-- Orphans: idle, and not because they wait for their retry. XAUTOCLAIM would look at ten entries for each it may give, always from
-- the first, and never reach an orphan behind enough that live or wait.
local from = '-'
while idle > 0 and #out - 1 < count do
  local page = redis.call('XPENDING', KEYS[1], group, 'IDLE', idle, from, '+', 100)
  for _, row in ipairs(page) do
    local ticket = row[1]
    if #out - 1 < count and not redis.call('ZSCORE', KEYS[4], ticket) then
      redis.call('XCLAIM', KEYS[1], group, consumer, 0, ticket, 'JUSTID')
      hand(ticket)
    end
    from = '(' .. ticket
  end
  if #page < 100 then break end
end

local want = count - (#out - 1)
if want <= 0 then return out end
local read = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', want, 'STREAMS', KEYS[1], '>')
local entries = read and read[1] and read[1][2] or {}
for i, entry in ipairs(entries) do
  local waiting, total = {}, 0
  for lane = 1, 3 do
    waiting[lane] = redis.call('ZCARD', KEYS[5 + lane])
    if waiting[lane] > 0 then total = total + tonumber(ARGV[4 + lane]) end
  end
  local draw = tonumber(ARGV[7 + i]) * total
  local chosen
  for lane = 1, 3 do
    if waiting[lane] > 0 then
      chosen = lane
      draw = draw - tonumber(ARGV[4 + lane])
      if draw < 0 then break end
    end
  end
  if chosen then
    local popped = redis.call('ZPOPMIN', KEYS[5 + chosen])
    if waiting[chosen] == 1 then redis.call('DEL', KEYS[8 + chosen])
    else redis.call('HSET', KEYS[8 + chosen], 'clock', popped[2]) end
    redis.call('HSET', KEYS[3], entry[1], popped[1])
  end
  hand(entry[1])
end
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if newest[1] then out[1] = newest[1][1] end
return out
