-- Record an event that can never be a job, once: failed from the start. A job that another event asked for is left alone.
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 sha of the raw data, 2 retention_s, 3.. field, value pairs of the record, its error among them
-- gives 'rejected' | 'exists' (rejected or ended before) | 'conflict' (a job of another request has this identity)
local job = redis.call('HMGET', KEYS[1], 'sha', 'state', 'attempt', 'rejected')
if job[1] and job[1] ~= ARGV[1] and job[4] ~= '1' then return 'conflict' end
if job[1] and job[2] ~= 'queued' then return 'exists' end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if not job[1] then
  redis.call('HSET', KEYS[1], 'sha', ARGV[1], 'attempt', 0, 'failures', 0, 'token_count', 0, 'created_ms', now, unpack(ARGV, 3))
else
  -- A reject that was redriven unchanged, and is as bad as before.
  for i = 3, #ARGV, 2 do
    if ARGV[i] == 'error' then redis.call('HSET', KEYS[1], 'error', ARGV[i + 1]) end
  end
end
redis.call('HSET', KEYS[1], 'state', 'failed', 'rejected', 1, 'dead', 1, 'announced', 0, 'finished_ms', now)
redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'state', 'failed', 'attempt', job[3] or 0, 'at_ms', now)
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('PUBLISH', 'torpor:ended', KEYS[1])
return 'rejected'
