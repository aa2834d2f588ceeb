-- Put the calls of a job's newest turn that wait for no person into their queues again. A turn that an earlier job left is taken over here.
-- USES _clock _job _tools
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 step, 2 attempt, 3 plan version, 4 recheck_ms, 5 retention_s of a job that ends with it, 6.. the predictor's event: record, '1' to
--       note that it is unpublished, number of queues, prefixes of their keys; number of calls; then for each its place and its event
-- gives 'ok' | 'done' (no turn is open) | 'fenced' | 'terminal' | 'missing'
local key, stream, job = KEYS[1], KEYS[2], read_job(KEYS[1])
local refusal = run_refusal(key, job, ARGV[2], ARGV[3])
if refusal then return refusal end
if job.step ~= ARGV[1] or not job.turns or (job.candidate_state and not job.calling) then return 'done' end
local now, job_id = now_ms(), string.match(key, '{(.*)}')
local calling = job.calling and cjson.decode(job.calling)
if not calling then
  local turn = cjson.decode(redis.call('HGET', key, 'turn:' .. job.turns))
  calling = {turn = turn.number, epoch = turn.epoch or 0, ends = 0, parallel = turn.parallel, ask_ms = turn.ask_ms, paused_ms = 0, states = {}, queues = {}}
  for place = 0, turn.calls - 1 do calling.states[place + 1] = read_call(key, turn.number, place).state end
  redis.call('HSET', key, 'state', 'in_progress')
end
local take = reader(6)
local following = read_publication(take)
for _ = 1, tonumber(take()) do
  local place = tonumber(take())
  local publication, state = read_publication(take), calling.states[place + 1]
  if state == 'pending' and not calling.queues[tostring(place)] then
    queue_or_hold(key, job, job_id, calling, place, publication, now)
  elseif state == 'pending' or state == 'sent' or state == 'accepted' then
    queue_call(job, job_id, calling, place, publication, now, SWEEP_AFTER_MS, true)
  end
end
local pipeline = redis.call('HGET', key, 'pipeline')
local before = step_line(pipeline, ARGV[1])
if before and before.status == 'in_progress' then
  before.status = 'queued'
  put_step(key, pipeline, before)
end
go_on(key, stream, job, calling, following, now, ARGV[4], ARGV[5])
return 'ok'
