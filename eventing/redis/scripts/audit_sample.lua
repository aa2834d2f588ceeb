-- Note that an ended job is to be audited, once for each job.
-- USES _clock
-- KEYS  1 audit of the job, 2 audits of the critic that wait, 3 audits of the tenant
-- ARGV  1 job id, 2 retention_s, 3 most that may wait, 4.. field, value pairs
-- gives 1 | 0 (it is noted already, or too many wait)
if redis.call('EXISTS', KEYS[1]) == 1 or redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then return 0 end
local now = now_ms()
redis.call('HSET', KEYS[1], 'sampled_ms', now, unpack(ARGV, 4))
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[2] * 1000)
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[2])
return 1
