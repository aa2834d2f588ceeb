-- Record an event that can never be a job, once: failed from the start. A job that another event asked for is left alone.
-- USES _clock _job _end
-- KEYS  1 job hash, 2 list of the tenant's jobs
-- ARGV  1 sha of the raw data, 2 retention_s, 3 error, 4.. field, value pairs of the record
-- gives 'rejected' | 'exists' (rejected or ended before) | 'conflict' (a job of another request has this identity) | 'deleted'
local job = redis.call('HMGET', KEYS[1], 'sha', 'state', 'rejected', 'deleted')
if job[4] then return 'deleted' end
if job[1] and job[1] ~= ARGV[1] and job[3] ~= '1' then return 'conflict' end
if job[1] and job[2] ~= 'queued' then return 'exists' end
local now = now_ms()
if not job[1] then
  redis.call('HSET', KEYS[1], 'sha', ARGV[1], 'state', 'queued', 'attempt', 0, 'failures', 0, 'token_count', 0, 'created_ms', now, unpack(ARGV, 4))
  redis.call('ZADD', KEYS[2], 'NX', now, string.match(KEYS[1], '{(.*)}'))
end
end_job(KEYS[1], read_job(KEYS[1]), 'failed', now, ARGV[2], '1', '', {'rejected', 1, 'error', ARGV[3]})
return 'rejected'
