-- What one queue holds, for its metrics; takes nothing and carries no event out of the store.
-- The oldest event of a lane is among those whose fair-queueing tag is within one step of the head's: every tenant's first event is.
-- KEYS  1 tickets, 2 events, 3 held hash (ticket to member), 4 retry set, 5 pace hash, 6..8 ready sets
-- ARGV  1 group, 2 how many events to look at in a lane, 3 how many held ones
-- gives {now_s, retrying, pace pairs, {count, oldest_ms} a lane, {member, enqueued_ms}... of what is held}
local function stamp(member)
  local record = redis.call('HGET', KEYS[2], member)
  return record and tonumber(string.match(record, '^(%d+) ')) or 0
end
local lanes = {}
for lane = 1, 3 do
  local key = KEYS[5 + lane]
  local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  local oldest = 0
  if head[2] then
    local top = string.format('%.17g', tonumber(head[2]) + 1)
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', top, 'LIMIT', 0, ARGV[2])) do
      local at = stamp(member)
      if at > 0 and (oldest == 0 or at < oldest) then oldest = at end
    end
  end
  lanes[lane] = {redis.call('ZCARD', key), oldest}
end
local held, most = {}, tonumber(ARGV[3])
for i, member in ipairs(redis.call('HVALS', KEYS[3])) do
  if i > most then break end
  held[i] = {member, stamp(member)}
end
return {tonumber(redis.call('TIME')[1]), redis.call('ZCARD', KEYS[4]), redis.call('HGETALL', KEYS[5]), lanes, held}
