-- Fail jobs whose deadline has passed and that have no lease. An owner learns of the deadline by `renew`, and ends the job.
-- USES _clock _job _end
-- KEYS  1 index of deadlines
-- ARGV  1 most to look at, 2 retention_s of a failed job, 3 lease_ms, 4 retention_s of another
-- gives the ids of the jobs that it ended
local now, failed = now_ms(), {}
for _, job_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local key = 'torpor:{' .. job_id .. '}'
  local job = read_job(key)
  local left = job.state == 'in_progress' and lease_left(key, job.lease_until_ms, now, ARGV[3]) or 0
  local is_paused = job.calling and deadline_of(job) == 0
  if is_paused then
    redis.call('ZREM', KEYS[1], job_id)
  elseif left > 0 then
    redis.call('ZADD', KEYS[1], now + left, job_id)
  elseif job.state == 'queued' or job.state == 'in_progress' then
    end_late(key, job, now, ARGV[4], ARGV[2], 'lost')
    failed[#failed + 1] = job_id
  else
    redis.call('ZREM', KEYS[1], job_id)
  end
end
return failed
