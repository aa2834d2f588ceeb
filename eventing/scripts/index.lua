-- Put a member into a time index at store time plus a delay.
-- KEYS  1 sorted set
-- ARGV  1 member, 2 delay_ms, 3 'NX' to leave an existing member alone, '' to move it
local t = redis.call('TIME')
local at = t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[2])
if ARGV[3] == 'NX' then return redis.call('ZADD', KEYS[1], 'NX', at, ARGV[1]) end
return redis.call('ZADD', KEYS[1], at, ARGV[1])
