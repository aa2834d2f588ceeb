-- A run of a step failed: the step waits for its next try. Nothing is changed when the job has moved on.
-- USES _clock _job
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 step, 2 attempt
-- gives 1 | 0
local job = read_job(KEYS[1])
if (job.state ~= 'queued' and job.state ~= 'in_progress') or job.step ~= ARGV[1] or job.attempt ~= ARGV[2] then return 0 end
local pipeline = redis.call('HGET', KEYS[1], 'pipeline')
local line = step_line(pipeline, ARGV[1])
if not line or line.status ~= 'in_progress' then return 0 end
line.status = 'queued'
put_step(KEYS[1], pipeline, line)
if line.runs <= SHOWN_RUNS then
  redis.call('XADD', KEYS[2], '*', 'kind', 'step', 'step', ARGV[1], 'status', 'queued', 'attempt', job.attempt, 'at_ms', now_ms())
end
return 1
