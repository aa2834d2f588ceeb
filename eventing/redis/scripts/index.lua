-- Put members into a time index at store time plus a delay.
-- KEYS  1 sorted set
-- ARGV  1 member, 2 delay_ms, 3 'NX' to leave existing members alone, '' to move them, 4 keep_ms: drop members older than that and let
--       the index go when nothing is put for as long (0: keep all), 5.. more members
local t = redis.call('TIME')
local at = t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[2])
local keep = tonumber(ARGV[4])
if keep > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', at - keep) end
local function put(member)
  if ARGV[3] == 'NX' then return redis.call('ZADD', KEYS[1], 'NX', at, member) end
  return redis.call('ZADD', KEYS[1], at, member)
end
local added = put(ARGV[1])
for i = 5, #ARGV do added = added + put(ARGV[i]) end
if keep > 0 then redis.call('PEXPIRE', KEYS[1], keep) end
return added
