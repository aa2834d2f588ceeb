-- Begin a run of a step of a waiting job, or say why not. A job past its deadline is failed here.
-- USES _clock _job _end
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 step, 2 retention_s of a failed job, 3 retention_s of another
-- gives {'begun', runs of this step so far, 1 if the run before it ended without a word} | {'done'} (another step is next, or none)
--       | {'unplanned'} | {'terminal'} | {'expired'} | {'missing'}
local job = read_job(KEYS[1])
if not job.state then return {'missing'} end
if job.state ~= 'queued' and job.state ~= 'in_progress' then return {'terminal'} end
if not job.step then return {'unplanned'} end
if job.step ~= ARGV[1] then return {'done'} end
local now, deadline = now_ms(), deadline_of(job)
if deadline > 0 and now >= deadline then
  end_late(KEYS[1], job, now, ARGV[3], ARGV[2], '')
  return {'expired'}
end
local pipeline = redis.call('HGET', KEYS[1], 'pipeline')
local before = step_line(pipeline, ARGV[1])
local runs = before and before.runs + 1 or 1
put_step(KEYS[1], pipeline, {name = ARGV[1], status = 'in_progress', started = before and before.started or now, ended = 0, runs = runs, detail = '{}'})
if job.candidate_state and not job.after_queues then redis.call('ZREM', UNPUBLISHED, string.match(KEYS[1], '{(.*)}')) end
if runs <= SHOWN_RUNS then
  redis.call('XADD', KEYS[2], '*', 'kind', 'step', 'step', ARGV[1], 'status', 'in_progress', 'attempt', job.attempt, 'at_ms', now)
end
return {'begun', runs, before and before.status == 'in_progress' and 1 or 0}
