-- Put off a member of a time index; one that was taken out meanwhile stays out.
-- KEYS  1 sorted set
-- ARGV  1 member, 2 delay_ms from now
local t = redis.call('TIME')
return redis.call('ZADD', KEYS[1], 'XX', t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[2]), ARGV[1])
