-- Take members that are due from a time index, pushing each out so that no other sweeper takes it meanwhile.
-- USES _clock
-- KEYS  1 sorted set
-- ARGV  1 count, 2 push_ms
-- gives the members taken
local now = now_ms()
follow_clock(KEYS[1], now)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, member in ipairs(due) do redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), member) end
return due
