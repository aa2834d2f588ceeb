-- Deliver again later. The ticket stays pending, so the work still counts; any consumer may take it when it is due.
-- KEYS  1 held, 2 retry, 3 tries
-- ARGV  1 ticket, 2 delay_ms, 3 tries to take back
local member = redis.call('HGET', KEYS[1], ARGV[1])
if not member then return 0 end
if ARGV[3] ~= '0' and redis.call('HINCRBY', KEYS[3], member, -ARGV[3]) <= 0 then redis.call('HDEL', KEYS[3], member) end
local t = redis.call('TIME')
redis.call('ZADD', KEYS[2], t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[2]), ARGV[1])
return 1
