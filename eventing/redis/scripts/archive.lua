-- Put the reference to an object into the record of an ended job, and let go of what is in the object. Run again after a crash in the middle,
-- it ends what it began.
-- USES _clock
-- KEYS  1 job hash, 2 token stream, 3 index of jobs to be archived
-- ARGV  1 job id, 2 attempt that was read, 3 reference (JSON), 4 '1' if the result is in the object,
--       5 reference that it replaces: to the object of another job, with whose answer this one ended; '' for none
-- gives 'archived' | 'known' (another object was first) | 'changed' (redriven, or gone)
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'object')
redis.call('ZREM', KEYS[3], ARGV[1])
if not job[1] or job[1] == 'queued' or job[1] == 'in_progress' or job[2] ~= ARGV[2] then return 'changed' end
if job[3] == ARGV[5] then job[3] = false end
redis.call('HSET', KEYS[1], 'object', job[3] or ARGV[3])
if ARGV[4] == '1' then redis.call('HDEL', KEYS[1], 'result') end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
if newest[1] and newest[1][2][2] ~= 'archived' then
  redis.call('XTRIM', KEYS[2], 'MAXLEN', 0)
  redis.call('XADD', KEYS[2], '*', 'kind', 'archived', 'attempt', job[2], 'at_ms', now_ms())
end
return job[3] and 'known' or 'archived'
