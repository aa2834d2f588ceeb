-- Done with an event, however it ended: acknowledge its ticket and forget it. A second call does nothing. An event that was put again
-- meanwhile is due again at once, under the same ticket.
-- KEYS  1 tickets, 2 events, 3 held, 4 retry, 5 tries, 6 pace hash (events settled a minute)
-- ARGV  1 group, 2 ticket
local member = redis.call('HGET', KEYS[3], ARGV[2])
if member and redis.call('HDEL', KEYS[5], '\0again:' .. member) == 1 then
  redis.call('HDEL', KEYS[5], member, '\0refused:' .. member, '\0refused_ms:' .. member)
  redis.call('ZADD', KEYS[4], 0, ARGV[2])
  return 2
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
if not member then return 0 end
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('HDEL', KEYS[2], member)
redis.call('HDEL', KEYS[5], member, '\0refused:' .. member, '\0refused_ms:' .. member)
redis.call('ZREM', KEYS[4], ARGV[2])
local minute = math.floor(redis.call('TIME')[1] / 60)
if redis.call('HINCRBY', KEYS[6], minute, 1) == 1 then
  redis.call('HDEL', KEYS[6], minute - 6)
  redis.call('EXPIRE', KEYS[6], 600)
end
return 1
