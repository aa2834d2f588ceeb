-- Note a try of a webhook delivery, and when the next one is due. A try that was noted before, by a sender that had not heard of it, wins.
-- KEYS  1 delivery hash, 2 due index
-- ARGV  1 delivery id, 2 number of this try (from 1; 0 to settle without one), 3 state, 4 delay_ms of the next try, 5 log entry (JSON), 6 ttl_s
-- gives 'ok' | 'stale' | 'missing'
local d = redis.call('HMGET', KEYS[1], 'tries', 'state')
if not d[1] then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 'missing'
end
if d[2] ~= 'pending' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 'stale'
end
local number = tonumber(ARGV[2])
if number > 0 then
  if tonumber(d[1]) + 1 ~= number then return 'stale' end
  redis.call('HSET', KEYS[1], 'tries', number, 'try:' .. number, ARGV[5])
end
redis.call('HSET', KEYS[1], 'state', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[6])
if ARGV[3] == 'pending' then
  local t = redis.call('TIME')
  redis.call('ZADD', KEYS[2], t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[4]), ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
return 'ok'
