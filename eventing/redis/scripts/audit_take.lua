-- Take the oldest waiting audits, as many as may be in flight, and note when they were asked.
-- USES _clock
-- KEYS  1 audits of the critic that wait, 2 those that were asked
-- ARGV  1 most that may be in flight, 2 newest to take: '+inf', or 0 for golden rows alone
-- gives the names of those taken
local room = ARGV[1] - redis.call('ZCARD', KEYS[2])
if room <= 0 then return {} end
local taken = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[2], 'LIMIT', 0, room)
local now = now_ms()
for _, name in ipairs(taken) do
  redis.call('ZREM', KEYS[1], name)
  redis.call('ZADD', KEYS[2], now, name)
end
if #taken > 0 then redis.call('EXPIRE', KEYS[2], 172800) end -- longer than any audit takes
return taken
