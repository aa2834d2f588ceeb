-- Send a waiting job to the model that stands in for its own, which does not start: its new request, and the event in the other model's
-- queues in place of its own. An attempt that has begun meanwhile keeps it.
-- USES _clock _job _queue _cache
-- KEYS  1 job hash, 2 token stream, 3 hash of the model's starts
-- ARGV  1 fallback as the job's record has it, 2 attempt, 3 lease_ms, 4 recheck_ms, 5 '1' to note that its event is unpublished, 6 event record,
--       7 number n of queues that want it, 8..7+n prefixes of their keys, 8+n.. field, value pairs (prepared, prepared_sha, routing)
-- gives 'ok' | 'changed' (it waits for that model no more, the model starts, or the job is its probe)
local job = read_job(KEYS[1])
local now, n, job_id = now_ms(), tonumber(ARGV[7]), string.match(KEYS[1], '{(.*)}')
local is_waiting = job.state == 'queued'
  or (job.state == 'in_progress' and lease_left(KEYS[1], job.lease_until_ms, now, ARGV[3]) <= 0)
if not is_waiting or job.fallback ~= ARGV[1] or job.attempt ~= ARGV[2] or job.candidate_state or (job.step and job.step ~= '') then
  return 'changed'
end
local start = redis.call('HMGET', KEYS[3], 'tripped_ms', 'probe')
if not start[1] or start[1] == '0' or start[2] == job_id then return 'changed' end
-- First: Redis 7.0 can apply the first half of a script after a power cut. The sweep sends the event of what the record says.
redis.call('ZADD', UNSTARTED, now + ARGV[4], job_id)
if ARGV[5] == '1' then redis.call('ZADD', UNPUBLISHED, now + SWEEP_AFTER_MS, job_id) end
local queues, member = {unpack(ARGV, 8, 7 + n)}, event_identity(job.source, job.event_id, job.tenant)
for _, prefix in ipairs(job.queues and cjson.decode(job.queues) or {}) do void_entry(prefix, job.lane, member) end
for _, prefix in ipairs(queues) do
  if enqueue(prefix, job.lane, member, ARGV[6], job.tenant, false, now) == 0 then -- in the same queue, and delivered at this moment
    redis.call('HSET', prefix .. 'events', member, string.format('%d ', now) .. ARGV[6])
  end
end
local history = history_of(job.history)
if job.state == 'in_progress' then close_attempt(history, 'lost', now) end
local tokens = tonumber(job.token_count)
redis.call('HSET', KEYS[1], 'state', 'queued', 'lease_owner', '', 'lease_id', '', 'lease_until_ms', 0, 'history', history_json(history),
  'failures', job.failures + (job.state == 'in_progress' and 1 or 0), 'fallback', '', unpack(ARGV, 8 + n))
if n > 0 then redis.call('HSET', KEYS[1], 'queues', cjson.encode(queues)) end
if tokens > 0 then redis.call('HSET', KEYS[1], 'restart', 1) end -- another model goes on from no tokens
if job.state == 'in_progress' then
  redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'state', 'queued', 'attempt', job.attempt, 'at_ms', now)
end
unwatch_start(job_id, job.fallback)
if job.cache then keep_answer(job_id, job.tenant_key or job.tenant, job, 'failed', now) end -- it would be another model's
return 'ok'
