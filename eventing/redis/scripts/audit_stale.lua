-- The audits that were asked a while ago and have no verdict; each is given again after the same time only.
-- USES _clock
-- KEYS  1 audits of the critic that were asked
-- ARGV  1 milliseconds since it was asked, 2 most
-- gives their names
local now = now_ms()
follow_clock(KEYS[1], now)
local names = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1], 'LIMIT', 0, ARGV[2])
for _, name in ipairs(names) do redis.call('ZADD', KEYS[1], now, name) end
return names
