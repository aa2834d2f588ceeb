-- Give a job back before it ended, so that the next attempt starts at once and not when the lease runs out.
-- USES _clock _job _end
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 attempt, 2 lease id, 3 'handover' (costs no attempt) | 'failure' | 'lost' (each costs one), 4 max_attempts, 5 retention_s, 6 error JSON for the last failure
-- gives 'queued' | 'exhausted' (now failed, a dead letter) | 'fenced' | 'terminal' | 'missing'
local job = read_job(KEYS[1])
if not job.state then return 'missing' end
if job.state ~= 'in_progress' or job.attempt ~= ARGV[1] or job.lease_id ~= ARGV[2] then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return (job.state == 'in_progress' or job.state == 'queued') and 'fenced' or 'terminal'
end
local now = now_ms()
local failures = tonumber(job.failures)
if ARGV[3] ~= 'handover' then failures = failures + 1 end
if failures >= tonumber(ARGV[4]) then
  end_job(KEYS[1], job, 'failed', now, ARGV[5], '1', ARGV[3], {'failures', failures, 'error', ARGV[6]})
  return 'exhausted'
end
local history = history_of(job.history)
close_attempt(history, ARGV[3], now)
redis.call('HSET', KEYS[1], 'state', 'queued', 'failures', failures, 'lease_owner', '', 'lease_until_ms', 0, 'history', history_json(history))
redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'state', 'queued', 'attempt', ARGV[1], 'at_ms', now)
return 'queued'
