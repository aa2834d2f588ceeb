-- Done with events, however they ended: acknowledge their tickets and forget them. A second call does nothing. An event that was put again
-- meanwhile is due again at once, under the same ticket.
-- KEYS  1 tickets, 2 events, 3 held, 4 retry, 5 tries, 6 pace hash (events settled a minute)
-- ARGV  1 group, 2.. tickets
-- gives how many events are gone
local tickets = {unpack(ARGV, 2)}
local members, again, done, gone, counters = redis.call('HMGET', KEYS[3], unpack(tickets)), {}, {}, {}, {}
for i, member in ipairs(members) do again[i] = '\0again:' .. (member or '') end
again = redis.call('HMGET', KEYS[5], unpack(again))
for i, member in ipairs(members) do
  if again[i] then
    redis.call('ZADD', KEYS[4], 0, tickets[i])
  else
    done[#done + 1] = tickets[i]
    if member then gone[#gone + 1] = member end
  end
  if member then
    for _, before in ipairs({'', '\0again:', '\0refused:', '\0refused_ms:', '\0passed:'}) do counters[#counters + 1] = before .. member end
  end
end
if #counters > 0 then redis.call('HDEL', KEYS[5], unpack(counters)) end
if #done > 0 then redis.call('XACK', KEYS[1], ARGV[1], unpack(done)) end
if #gone == 0 then return 0 end
redis.call('HDEL', KEYS[3], unpack(done))
redis.call('HDEL', KEYS[2], unpack(gone))
redis.call('ZREM', KEYS[4], unpack(done))
local minute = math.floor(redis.call('TIME')[1] / 60)
if redis.call('HINCRBY', KEYS[6], minute, #gone) == #gone then
  redis.call('HDEL', KEYS[6], minute - 6)
  redis.call('EXPIRE', KEYS[6], 600)
end
return #gone
