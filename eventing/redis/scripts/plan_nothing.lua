-- Send a job that was recorded without a plan to its predictor, under an empty plan: its model was given a plan since.
-- USES _clock _job _queue
-- KEYS  1 job hash
-- ARGV  1 recheck_ms, 2 '1' to note that its event is unpublished, 3 event record, 4 number n of queues that want it, 5..4+n prefixes of
--       their keys, 5+n.. field, value pairs (plan, plan_version, step)
-- gives 1 | 0 (it has a plan, has ended, or is gone)
local job = read_job(KEYS[1])
if (job.state ~= 'queued' and job.state ~= 'in_progress') or job.step then return 0 end
local now, n, job_id = now_ms(), tonumber(ARGV[4]), string.match(KEYS[1], '{(.*)}')
local queues, member = {unpack(ARGV, 5, 4 + n)}, event_identity(job.source, job.event_id, job.tenant)
redis.call('ZADD', UNSTARTED, now + ARGV[1], job_id)
if ARGV[2] == '1' then redis.call('ZADD', UNPUBLISHED, now + SWEEP_AFTER_MS, job_id) end
for _, prefix in ipairs(queues) do enqueue(prefix, job.lane, member, ARGV[3], job.tenant, false, now) end
redis.call('HSET', KEYS[1], unpack(ARGV, 5 + n))
if n > 0 then redis.call('HSET', KEYS[1], 'queues', cjson.encode(queues)) end
watch_start(job_id, value_in(ARGV, 'fallback', 5 + n), now)
return 1
