-- Deliver again later. The ticket stays pending, so the work still counts; any consumer may take it when it is due.
-- KEYS  1 held, 2 retry
-- ARGV  1 ticket, 2 delay_ms
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local t = redis.call('TIME')
redis.call('ZADD', KEYS[2], t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[2]), ARGV[1])
return 1
